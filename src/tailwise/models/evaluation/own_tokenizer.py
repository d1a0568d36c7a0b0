"""What a tokenizer that came with a model would make of a text, gone through before it is given one."""

from __future__ import annotations

import base64
import binascii
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import LocalFolder
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, read_bytes, read_text
from tailwise.models.evaluation.own_documents import (
    check_sizes,
    check_token_map,
    check_tokenizer_settings,
    folder_at,
)

#: Characters that one of a text may become, and steps of the way there; those that models carry stay below ten.
_MOST_GROWTH, _MOST_STEPS = 1000.0, 200
_MOST_ADDED = 10_000  # tokens around a text
_LONGEST_WORD = 1000  # letters; where a model says so, 100
_MOST_SPLIT = 1 << 28  # squares of the lengths of all tokens: those of a million of fifteen letters
_LONGEST_PIECE = 4096  # letters; the library keeps one node in another for each
_NORMALIZERS = (3, 5)  # fields of a model of SentencePiece: before a text is cut, and after it is put together
_SHORTEST_MAPPED = 2  # bytes of a letter that honest tables map to a longest text
#: Letters of the pieces that a tokenizer is tried on, and seconds of work that it may take for them: honest ones, slow
#: ones in Python too, take less than one.
_PIECES = tuple(64 << power for power in range(7))
_MOST_SECONDS = 10.0
_FIX = "take the tokenizer from where the model came from, or give another by --tokenizer"


def check_tokenizer(place: str, revision: str | None = None) -> None:
    """`UnreadableError` where a file of a tokenizer, in a folder or on the Hub, is of no honest one.

    Files on the Hub are fetched into its cache, as transformers would, after their sizes were looked at.
    """
    folder = folder_at(place, revision)
    if folder is None:
        return
    check_sizes(folder)
    for name in sorted(folder.names()):
        check = next((check for pattern, check in _CHECKS if pattern.fullmatch(name)), None)
        if check is None or (isinstance(folder, LocalFolder) and not (folder.path / name).is_file()):
            continue
        with closing(folder.source(name)) as source:
            check(source.local_path())


def check_file(file: Path) -> None:
    """`UnreadableError` where a tokenizer.json claims a table that it does not hold, or has no measure.

    The library makes room for much of it as it reads it. Other damage is left to who reads it.
    """
    try:
        document = json_of(read_text(file))
    except (OSError, ValueError):
        return
    if not isinstance(document, dict):
        return
    for step in _steps(document.get("normalizer")):
        if step.get("type") == "Precompiled" and not _holds_its_table(_decoded(step)):
            raise _not_held(file)
    _check_steps([document.get("normalizer"), document.get("pre_tokenizer")], file)
    if _added(document.get("post_processor")) > _MOST_ADDED:
        raise UnreadableError(f"adds more than {_MOST_ADDED} tokens to every text", where=file, fix=_FIX)
    _check_model(document.get("model"), file)


def _not_held(file: Path) -> UnreadableError:
    return UnreadableError("its table of characters is not as long as it says", where=file, fix=_FIX)


def check_pieces(file: Path) -> None:
    """The same of a model of SentencePiece."""
    data = read_bytes(file)
    try:
        for number, value in _fields(data):
            if number == 1:
                length = max((len(text) for inner, text in _fields(value) if inner == 1), default=0)
                if length > _LONGEST_PIECE:
                    raise _too_long(file, length)
            elif number in _NORMALIZERS:
                tables = [table for inner, table in _fields(value) if inner == 2]
                if not all(map(_holds_its_table, tables)):
                    raise _not_held(file)
    except _NoMessageError:  # a list of tokens, as of tiktoken, or damage, which is refused for what it is
        return


class _NoMessageError(ValueError):
    """Bytes that are no message of protocol buffers."""


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """Number and bytes of every field that has a length, in a message of protocol buffers."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            _, at = _varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = _varint(data, at)
            if at + length > len(data):
                raise _NoMessageError
            yield key >> 3, data[at : at + length]
            at += length
        else:
            raise _NoMessageError


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise _NoMessageError
        byte, at = data[at], at + 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
    raise _NoMessageError


def _check_model(said: Any, file: Path) -> None:
    """What takes the library's time or stack: words without measure, and the longest pieces of a tree of letters."""
    if not isinstance(said, dict):
        return
    word = said.get("max_input_chars_per_word")
    if isinstance(word, int) and word > _LONGEST_WORD:
        raise UnreadableError(f"takes words of {word} letters, each of which takes the square of that", where=file,
                              fix=_FIX)  # fmt: skip
    around = (said.get("continuing_subword_prefix"), said.get("end_of_word_suffix"))
    pieces = said.get("vocab")
    listed = pieces if isinstance(pieces, list) else ()
    texts = [*around, *(one[0] for one in listed if isinstance(one, list) and one)]
    longest = max((len(text) for text in texts if isinstance(text, str)), default=0)
    if longest > _LONGEST_PIECE:
        raise _too_long(file, longest)


def check_tokens(tokens: Any, file: Path) -> None:
    """The same of the tokens of a GGUF file, which transformers takes apart at every place to find what they join."""
    lengths = [len(one) for one in tokens if isinstance(one, str)] if isinstance(tokens, list) else []
    if max(lengths, default=0) > _LONGEST_PIECE:
        raise _too_long(file, max(lengths))
    if sum(length * length for length in lengths) > _MOST_SPLIT:
        raise UnreadableError("has far more and longer tokens than any vocabulary", where=file, fix=_FIX)


def _too_long(file: Path, length: int) -> UnreadableError:
    return UnreadableError(f"has a piece of {length} letters, and words have fewer", where=file, fix=_FIX)


def _decoded(step: Mapping[str, Any]) -> bytes | None:
    """The table of a step that maps characters, of base64; None for what is none."""
    try:
        return base64.b64decode(step.get("precompiled_charsmap") or "", validate=False)
    except (TypeError, ValueError, binascii.Error):
        return None  # which is refused for what it is


def _holds_its_table(data: bytes | None) -> bool:
    """Whether the bytes are as many as their first four say, as SentencePiece writes them."""
    return data is None or int.from_bytes(data[:4], "little") <= len(data)


def _added(tokens: Any) -> int:
    """Tokens that a post-processor puts around a text, or a pair."""
    total, waiting = 0, [tokens]
    while waiting:
        step = waiting.pop()
        if not isinstance(step, dict):
            continue
        waiting += step["processors"] if isinstance(step.get("processors"), list) else []
        known = step.get("special_tokens")
        for piece in [*_listed(step.get("single")), *_listed(step.get("pair"))]:
            name = piece.get("SpecialToken") if isinstance(piece, dict) else None
            token = known.get(str(name.get("id"))) if isinstance(name, dict) and isinstance(known, dict) else None
            total += len(_listed(token.get("ids"))) if isinstance(token, dict) else 0
    return total


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def check_growth(tokenizer: Any, where: object) -> None:
    """`UnreadableError` where a fast tokenizer of transformers makes a text grow without measure before it is cut."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    parts = [getattr(backend, name, None) for name in ("normalizer", "pre_tokenizer")]
    _check_steps([json_of(part.__getstate__()) for part in parts if part is not None], where)


def _check_steps(parts: Sequence[Any], where: object) -> None:
    steps = [step for part in parts for step in _steps(part)]
    growth = 1.0
    for step in steps:
        growth = min(growth * _growth(step), 1e300)
    if growth > _MOST_GROWTH or len(steps) > _MOST_STEPS:
        raise UnreadableError(
            f"its tokenizer has {len(steps)} steps before it cuts a text, which may make it {growth:.3g} times as long",
            where=where,
            fix=_FIX,
        )


def check_pace(tokenizer: Any, texts: Sequence[str], where: object) -> None:
    """`UnreadableError` where pieces of the longest text show that tokenizing takes time without measure.

    A regular expression may take long at every place and stay below what its library gives up at, and the library
    cannot be stopped; so each piece is twice as long as the one before.
    """
    text = max(texts, key=len, default="")
    tokenizer(text[:1])  # what a first call gets ready is no work on the text
    began, tried = time.thread_time(), 0
    for number, size in enumerate(_PIECES):
        start = max(0, len(text) - size) * number // len(_PIECES)
        piece = text[start : start + size]
        tokenizer(piece)
        tried += len(piece)
        spent = time.thread_time() - began
        if spent > _MOST_SECONDS:
            raise UnreadableError(f"its tokenizer takes {spent:.0f} seconds for {tried} letters", where=where, fix=_FIX)
        if size >= len(text):
            return


@contextmanager
def panics_told(where: object) -> Iterator[None]:
    """What the library of tokenizers gives up on, which is no `Exception`, as `UnreadableError`."""
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        lines = str(error).splitlines()
        said = lines[0] if lines else "without a word"
        raise UnreadableError(f"its tokenizer gave up ({said[:200]})", where=where, fix=_FIX) from error


def _steps(said: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [said]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            inner = step.get("normalizers", step.get("pretokenizers"))
            if isinstance(inner, list):
                waiting += inner
            else:
                yield step


def _growth(step: Mapping[str, Any]) -> float:
    """Times that a step can make a text longer; what normal forms add is little."""
    kind = step.get("type")
    if kind == "ByteLevel":  # a letter for each byte, which are two bytes where it is none of ASCII
        return 2.0
    if kind == "Prepend":
        return 1.0 + len(str(step.get("prepend", "")))
    if kind == "Precompiled":  # texts that end with zero, behind a tree of the length that stands first
        table = _decoded(step) or b""
        texts = table[4 + int.from_bytes(table[:4], "little") :].split(b"\0")
        return max(1.0, float(max(map(len, texts))) / _SHORTEST_MAPPED)
    if kind != "Replace":
        return 1.0
    pattern = step.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    content = len(str(step.get("content", "")))
    # A regular expression may match every character, or between any two.
    return max(1.0, content / len(replaced) if replaced else content + 1.0)


#: What is looked at, by name. Settings of a tokenizer may name another file of the second kind for newer versions.
_CHECKS: tuple[tuple[re.Pattern[str], Callable[[Path], None]], ...] = (
    (re.compile(r"tokenizer_config\.json"), check_tokenizer_settings),
    (re.compile(r"special_tokens_map\.json"), check_token_map),
    (re.compile(r"tokenizer(\..+)?\.json"), check_file),
    (re.compile(r".+\.model|.+\.spm"), check_pieces),
)
