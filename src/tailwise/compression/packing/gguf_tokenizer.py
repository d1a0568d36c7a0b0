"""A tokenizer of transformers as the metadata of a GGUF file."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, read_text

#: The regular expression that splits words in Llama 3 and Qwen2; they differ in how many digits stay together.
_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_DIGITS = {"llama-bpe": r"\p{N}{1,3}", "qwen2": r"\p{N}"}  # by llama.cpp's names


def add_tokenizer(writer: Any, folder: Path, size: int) -> Iterator[str]:
    """Tokens, merges, special tokens and chat template, from the files in a folder; notes on what is left out."""
    tokenizer = _json(folder / "tokenizer.json")
    model = tokenizer.get("model", {})
    if not tokenizer:
        yield "there is no tokenizer.json: the file has no tokenizer, and llama.cpp asks for one"
        return
    if model.get("type") != "BPE":
        yield f"a tokenizer of the kind {model.get('type')} was left out of the file; it lies beside it"
        return
    tokens, kinds = _tokens(tokenizer, size)
    if model.get("byte_fallback"):
        writer.add_tokenizer_model("llama")
        # Earlier merges win: the score of a token falls with its number.
        writer.add_token_scores([-float(number) for number in range(len(tokens))])
    else:
        split = _split(tokenizer)
        writer.add_tokenizer_model("gpt2")
        writer.add_tokenizer_pre(split or "default")
        if split is None:
            yield "llama.cpp's name for how the tokenizer splits words is not known here; `default` stands in the file"
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    _add_special(writer, folder, size)


def _add_special(writer: Any, folder: Path, size: int) -> None:
    from gguf import SpecialVocab

    log = logging.getLogger("gguf.vocab")
    before = log.level
    log.setLevel(logging.ERROR)  # it tells every special token that there is not
    try:
        SpecialVocab(folder, load_merges=True, n_vocab=size).add_to_gguf(writer, quiet=True)
    finally:
        log.setLevel(before)


def _tokens(tokenizer: Mapping[str, Any], size: int) -> tuple[list[str], list[int]]:
    """Every number's token and its kind; numbers that the model has and the tokenizer has not are fillers."""
    from gguf import TokenType

    names = {number: token for token, number in tokenizer["model"]["vocab"].items()}
    added = {item["id"]: item for item in tokenizer.get("added_tokens", ())}
    names |= {number: item["content"] for number, item in added.items()}
    kinds = []
    for number in range(size):
        if number not in names:
            kinds.append(TokenType.UNUSED)
        elif number in added:
            kinds.append(TokenType.CONTROL if added[number].get("special") else TokenType.USER_DEFINED)
        else:
            kinds.append(_kind(names[number], byte_fallback=bool(tokenizer["model"].get("byte_fallback"))))
    return [names.get(number, f"[PAD{number}]") for number in range(size)], [int(kind) for kind in kinds]


def _kind(token: str, *, byte_fallback: bool) -> Any:
    from gguf import TokenType

    is_byte = byte_fallback and len(token) == 6 and token.startswith("<0x") and token.endswith(">")
    return TokenType.BYTE if is_byte else TokenType.NORMAL


def _split(tokenizer: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of the way that words are split."""
    steps = tokenizer.get("pre_tokenizer") or {}
    listed = steps.get("pretokenizers", [steps])
    patterns = [str(step.get("pattern", {}).get("Regex", "")) for step in listed if step.get("type") == "Split"]
    if not patterns:
        plain = any(step.get("type") == "ByteLevel" and step.get("use_regex", True) for step in listed)
        return "gpt-2" if plain else None
    known = (name for name, digits in _DIGITS.items() if patterns == [_SPLIT.replace("DIGITS", digits)])
    return next(known, None)


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        document = json_of(read_text(path))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"could not be read ({error})", where=path) from error
    return document if isinstance(document, dict) else {}
