"""The checkpoints of a run: folders and files whose names have a step, or revisions on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from tailwise.checkpoints.bytesource import Folder
from tailwise.checkpoints.hub import HubAddress, branches, parse_hub
from tailwise.checkpoints.open import open_folder
from tailwise.core.errors import UnreadableError, UsageError

#: Words before a step, those that mean it most surely first: "epoch=3-step=900" is step 900.
_WORDS = ("global[-_]?step|step", "checkpoint|ckpt|chkpt", "iteration|iter|it", "epoch|ep")
_PATTERNS = tuple(re.compile(rf"(?:^|[-_.=@/])(?:{words})[-_=.]?(\d+)(?!\d)", re.IGNORECASE) for words in _WORDS)
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf")
_SHARD = re.compile(r"-\d{3,}-of-\d{3,}\.")
#: What trainers call a checkpoint that is not done.
_ASIDE = re.compile(r"^(?:tmp|\.)|\.(?:tmp|temp|part|partial|incomplete)$", re.IGNORECASE)
_DEPTH = 3
_EXAMPLES = "step-100, step_100, checkpoint-100, global_step100, iter_100 or epoch-1"


@dataclass(frozen=True, order=True)
class FoundCheckpoint:
    """A checkpoint of a run."""

    step: int
    name: str  # of its folder, file or revision
    uri: str  # as `open_checkpoint` takes it


def step_of(name: str) -> int | None:
    """The step that a name has, or None: 900 of `epoch=3-step=900`."""
    if _ASIDE.search(name):
        return None
    found = next((match for pattern in _PATTERNS if (match := pattern.search(name))), None)
    return None if found is None else int(found[1])


def find(where: str | os.PathLike[str], revisions: Sequence[str] = ()) -> list[FoundCheckpoint]:
    """The checkpoints at `where` in order of step.

    Parameters
    ----------
    where
        A folder, local or behind an fsspec URL, with checkpoints in it, or one folder deeper where only one has any;
        or a model on the Hub, whose branches and tags named after a step are its checkpoints.
    revisions
        Of a model on the Hub: only these.

    Raises `UsageError` where several folders hold checkpoints of their own, and where `revisions` make no sense.
    """
    text = os.fspath(where)
    address = hub_address(text)
    if address is not None:
        return _ordered(_on_hub(address, revisions))
    if revisions:
        raise UsageError("only models on the Hugging Face Hub have revisions", where=text, fix="leave --revisions out")
    return _ordered(_in_folder(open_folder(text), _local(text), _DEPTH))


def _local(where: str) -> str:
    """The address of a folder, written so that it is one when it has gone: `run/step-1` is a model on the Hub too."""
    plain = "://" in where or where.startswith((".", "~")) or Path(where).is_absolute()
    return where if plain else f"./{where}"


def hub_address(where: str) -> HubAddress | None:
    """The address on the Hub that is meant, or None for a folder."""
    on_hub = where.startswith(("hf://", "https://huggingface.co/"))
    return None if not on_hub and Path(where).expanduser().exists() else parse_hub(where, None)


def nothing_found(where: str) -> UnreadableError:
    """The error for a place without checkpoints."""
    return UnreadableError("holds no checkpoints with a step in their names", where=where, fix=f"names are {_EXAMPLES}")


def _on_hub(address: HubAddress, revisions: Sequence[str]) -> Iterable[FoundCheckpoint]:
    if address.revision is not None:
        raise UsageError("names one revision already", where=str(address), fix="leave out what follows the @")
    for name in revisions or branches(address):
        step = step_of(name)
        if step is not None:
            yield FoundCheckpoint(step, name, str(replace(address, revision=name)))
        elif revisions:
            raise UsageError(f"the revision {name!r} has no step in its name", where=str(address), fix=_EXAMPLES)


def _in_folder(folder: Folder, uri: str, depth: int) -> list[FoundCheckpoint]:
    names = [name for name in folder.names() if name.endswith(_FILES) and not _SHARD.search(name)]
    here = [(step_of(name), name) for name in (*folder.subfolders(), *names)]
    found = [FoundCheckpoint(step, name, f"{uri.rstrip('/')}/{name}") for step, name in here if step is not None]
    if found or depth == 1:
        return found
    below = {}
    for name in sorted(folder.subfolders()):
        if not name.startswith("."):
            inner = f"{uri.rstrip('/')}/{name}"
            below[name] = _in_folder(open_folder(inner), inner, depth - 1)
    runs = {name: inner for name, inner in below.items() if inner}
    if len(runs) > 1:
        listed = ", ".join(list(runs)[:8]) + (" …" if len(runs) > 8 else "")
        fix = f"give one of them, as in {uri.rstrip('/')}/{next(iter(runs))}"
        raise UsageError(f"holds several runs: {listed}", where=uri, fix=fix)
    return next(iter(runs.values()), [])


def _ordered(found: Iterable[FoundCheckpoint]) -> list[FoundCheckpoint]:
    ordered = sorted(found)
    for one, other in pairwise(ordered):
        if one.step == other.step:
            raise UsageError(
                f"{one.name} and {other.name} are both step {one.step}",
                where=one.uri,
                fix="keep one, or move the other",
            )
    return ordered
