"""From texts or files of token ids to windows of one length."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.own_tokenizer import check_pace, panics_told
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.sources import SEPARATOR, Documents, documents_of

if TYPE_CHECKING:
    import torch

Ids = NDArray[np.int64]
#: When a window begins with the token that begins a text (BOS): as the tokenizer does by itself, always, or never.
BOS = ("auto", "always", "never")
TOKEN_SUFFIXES = (".npy", ".pt", ".safetensors", ".json")


@dataclass(frozen=True)
class Tokens:
    """A run of token ids, (n,), and where it came from."""

    ids: Ids
    name: str
    documents: int = 0  # 0: the ids were given
    notes: tuple[str, ...] = ()
    bos: int | None = None  # the token that every window is to begin with


def tokens_of(source: Any, tokenizer: Any = None, *, separator: str = SEPARATOR, bos: str = "never") -> Tokens:
    """The tokens of a text, of several, or of a file of ids.

    `source` is a path or name that `documents_of` takes, `Documents`, a file of ids (.npy, .pt, .safetensors with
    one tensor or one named `input_ids`, .json: a list), an array of ids, or a list of these. One document is
    tokenized as the tokenizer does by itself, with the special tokens that it adds (GPTQ's way). Of several, each
    is preceded by the token that begins a text (BOS; where there is none, EOS), and no other is added.

    With `bos`, every window begins with BOS, which some models were always shown: `auto` where the tokenizer begins
    texts with it, `always` where it has one (else a `UsageError`), `never`. The run itself then does not begin with it.
    """
    if bos not in BOS:
        raise UsageError(f"{bos!r} is no way to begin windows", fix=f"use {', '.join(BOS)}")
    parts = list(source) if isinstance(source, list | tuple) else [source]
    if not parts:
        raise UsageError("there is no text", fix="name a file, a folder or a data set")
    given = [_is_ids(part) for part in parts]
    if any(given) and not all(given):
        raise UsageError("texts and token ids do not go together", fix="give one kind")
    if all(given):
        arrays = [_ids_of(part) for part in parts]
        name = ", ".join(_name(part) for part in parts[:3])
        return _begun(Tokens(np.concatenate(arrays), name), tokenizer, bos)
    read = [documents_of(part, separator=separator) for part in parts]
    texts = [text for documents in read for text in documents.texts]
    name = read[0].name if len(read) == 1 else f"{read[0].name} and {len(read) - 1} more"
    if not texts:
        raise UsageError("there is no text in it", where=name, fix="give a file with some text")
    notes = tuple(note for documents in read for note in documents.notes)
    return _begun(Tokens(_encode(texts, tokenizer, name), name, len(texts), notes), tokenizer, bos)


def _begun(tokens: Tokens, tokenizer: Any, bos: str) -> Tokens:
    """With the token that every window begins with, where there is one; the run without it at its own beginning."""
    token = getattr(tokenizer, "bos_token_id", None)
    if bos == "always" and token is None:
        fix = "use --bos auto, or give the model's tokenizer"
        raise UsageError("there is no token that begins a text", where=tokens.name, fix=fix)
    if bos == "never" or token is None or (bos == "auto" and not _adds(tokenizer, token)):
        return tokens
    ids = tokens.ids[1:] if len(tokens.ids) and tokens.ids[0] == token else tokens.ids
    return replace(tokens, ids=ids, bos=int(token))


def _adds(tokenizer: Any, token: int) -> bool:
    """Whether the tokenizer begins a text with BOS by itself."""
    with quiet(), panics_told("the tokenizer"):
        return bool(list(tokenizer("a")["input_ids"])[:1] == [token])


def with_bos(windows: torch.Tensor, bos: int | None) -> torch.Tensor:
    """(n, length) → (n, length + 1), each beginning with BOS; as they are where there is none."""
    import torch

    if bos is None:
        return windows
    return torch.cat([torch.full_like(windows[:, :1], bos), windows], dim=1)


def shorter(window: int, bos: int | None) -> int:
    """Tokens of text in a window."""
    return window if bos is None else window - 1


def _is_ids(part: Any) -> bool:
    if isinstance(part, str | os.PathLike):
        path = Path(part).expanduser()
        return path.suffix in TOKEN_SUFFIXES and path.is_file()
    return not isinstance(part, Documents)


def _name(part: Any) -> str:
    return os.fspath(part) if isinstance(part, str | os.PathLike) else "token ids"


def _encode(texts: Sequence[str], tokenizer: Any, name: str) -> Ids:
    if tokenizer is None:
        raise UsageError("a text takes a tokenizer", where=name, fix="give one, or a file of token ids")
    with quiet(), panics_told(name):  # that a text is longer than the model's context is no news here
        check_pace(tokenizer, texts, name)
        if len(texts) == 1:
            return np.asarray(tokenizer(texts[0])["input_ids"], dtype=np.int64)
        parts = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    first = beginning(tokenizer)
    return np.concatenate([np.asarray([*first, *part], dtype=np.int64) for part in parts])


def beginning(tokenizer: Any) -> list[int]:
    """The token that begins a document, in a list; an empty list where the tokenizer has none."""
    named = (getattr(tokenizer, "bos_token_id", None), getattr(tokenizer, "eos_token_id", None))
    return [token for token in named if token is not None][:1]


def _ids_of(part: Any) -> Ids:
    where = _name(part)
    values = _read_ids(Path(part).expanduser()) if isinstance(part, str | os.PathLike) else part
    try:
        ids = np.asarray(values.cpu() if hasattr(values, "cpu") else values)
    except (ValueError, TypeError, RuntimeError) as error:  # torch's, of a tensor without values
        raise UsageError(f"does not hold token ids ({error})", where=where) from error
    if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
        kind = f"{ids.dtype} of shape {tuple(ids.shape)}"
        raise UsageError(f"token ids are integers on one axis, not {kind}", where=where, fix="flatten them")
    return ids.astype(np.int64)


def _read_ids(path: Path) -> Any:
    try:
        if path.suffix == ".pt":
            return _pickled(path)
        if path.suffix == ".npy":
            return _mapped(path)
        if path.suffix == ".json":
            return json_of(read_text(path))
        from safetensors.numpy import load_file

        tensors = load_file(path)
    except UnreadableError:
        raise
    except Exception as error:  # each reader has its own errors for damaged bytes
        detail = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UnreadableError(f"could not be read as token ids ({detail})", where=path) from error
    if len(tensors) != 1 and "input_ids" not in tensors:
        raise UsageError(f"it has {len(tensors)} tensors", where=path, fix="name the token ids `input_ids`")
    return tensors.get("input_ids", next(iter(tensors.values())))


def _mapped(path: Path) -> Any:
    """An array as it lies in its file, which says how much there is of it."""
    found = np.load(path, mmap_mode="r" if path.stat().st_size else None, allow_pickle=False)
    if not isinstance(found, np.ndarray):
        raise ValueError("it is an archive of arrays")
    return found


def _pickled(path: Path) -> Any:
    """A tensor of a file of torch, or a list of numbers; one whose entries are few that are repeated is refused."""
    import torch

    from tailwise.checkpoints.formats.repeated import beyond_what_is_held
    from tailwise.checkpoints.formats.safe_pickle import load_safely
    from tailwise.checkpoints.formats.torch_pickle import check_pickles_let_in, laid

    check_pickles_let_in(str(path), "give token ids as .npy or .safetensors")
    saved = load_safely(path, str(path))
    if isinstance(saved, list | tuple) and all(isinstance(item, int) for item in saved):
        return saved
    if not isinstance(saved, torch.Tensor):
        raise UnreadableError(
            f"holds a {type(saved).__name__}, and token ids are one tensor", where=path, fix="save the ids alone"
        )
    place = laid("ids", saved)
    if place is not None and (refused := beyond_what_is_held([place])):
        raise UnreadableError(refused["ids"], where=path)
    return saved


def windows_of(
    tokens: Tokens | Ids | torch.Tensor, window: int = 512, max_windows: int | None = None, seed: int | None = 0
) -> torch.Tensor:
    """Windows that do not overlap, (n, window) int64: consecutive blocks of the run, the rest at its end left out.

    `max_windows` takes that many of them at random, in the order of the text; with `seed=None`, the first ones.
    `Tokens` whose windows begin with BOS have a token of text less in each.
    """
    import torch

    bos = tokens.bos if isinstance(tokens, Tokens) else None
    ids = torch.as_tensor(tokens.ids if isinstance(tokens, Tokens) else tokens).to(torch.int64)
    where = tokens.name if isinstance(tokens, Tokens) else None
    if window < 2:
        raise UsageError(f"a window of {window} tokens predicts nothing", fix="use 2 or more")
    if max_windows is not None and max_windows < 1:
        raise UsageError(f"{max_windows} windows are none", fix="use 1 or more, or leave --max-windows out")
    if bos is not None and window < 3:
        raise UsageError("a window of BOS and one token predicts little", fix="use --window 3 or more, or --bos never")
    window = shorter(window, bos)
    count = len(ids) // window
    if count == 0:
        fix = f"use --window {len(ids)} or less, or more text" if len(ids) >= 2 else "give more text"
        raise UsageError(f"{len(ids)} tokens do not fill a window of {window}", where=where, fix=fix)
    windows = with_bos(ids[: count * window].view(count, window), bos)
    if max_windows is None or max_windows >= count:
        return windows
    if seed is None:
        return windows[:max_windows]
    chosen = np.sort(np.random.default_rng(seed).choice(count, max_windows, replace=False))
    return windows[torch.from_numpy(chosen)]


def check_vocabulary(windows: torch.Tensor, vocabulary: int, where: str) -> None:
    """`UsageError` where a token id is none of the model's."""
    low, high = int(windows.min()), int(windows.max())
    if low < 0 or high >= vocabulary:
        bad = low if low < 0 else high
        raise UsageError(
            f"the token id {bad} is not in the model's vocabulary of {vocabulary}",
            where=where,
            fix="use the model's own tokenizer",
        )
