"""The checkpoints of a run: folders and files whose names have a step, or revisions on the Hub."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path

from tailwise.checkpoints.bytesource import Folder
from tailwise.checkpoints.hub import HubAddress, branches, parse_hub
from tailwise.checkpoints.layout import is_side_file
from tailwise.checkpoints.open import open_folder
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.history.jsonl import LAST_STEP

#: Words before a step, those that mean it most surely first: "epoch=3-step=900" is step 900.
_WORDS = ("global[-_]?step|step", "checkpoint|ckpt|chkpt", "iteration|iter|it", "epoch|ep")
#: 900, 1_000, 1,000, 1e3, 10k, 1.5M. Digits that only a dot parts from others are no fraction: `step-5.0` is 5.
_NUMBER = r"(?P<digits>\d{1,3}(?:[_,]\d{3})+(?!\d)|\d+)(?P<rest>(?:\.\d+)?(?:e\+?\d+|[kmb])(?![a-z0-9]))?(?!\d)"
_PATTERNS = tuple(re.compile(rf"(?:^|[-_.=@/])(?:{words})[-_=.]?{_NUMBER}", re.IGNORECASE) for words in _WORDS)
_TIMES = {"k": 3, "m": 6, "b": 9}
#: Words of `_WORDS` that count epochs, which are no steps.
_EPOCHS = 3
_FILES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt", ".gguf")
_SHARD = re.compile(r"-\d{3,}-of-\d{3,}\.")
#: Files beside the weights that tell the step, and under which key: transformers' trainer's, and the examples'.
_TOLD = (("trainer_state.json", "global_step"), ("training.json", "step"))
#: What trainers call a checkpoint that is not done.
_ASIDE = re.compile(r"^(?:tmp|\.)|\.(?:tmp|temp|part|partial|incomplete)$", re.IGNORECASE)
_DEPTH = 3
_MOST_DIGITS = 4000  # Python reads no longer number
_MOST_ZEROS = 15
_EXAMPLES = "step-100, step_100, checkpoint-100, global_step100, iter_100 or epoch-1"


@dataclass(frozen=True, order=True)
class FoundCheckpoint:
    """A checkpoint of a run."""

    step: int
    name: str  # of its folder, file or revision
    uri: str  # as `open_checkpoint` takes it


def step_of(name: str) -> int | None:
    """The step that a name has, or None: 900 of `epoch=3-step=900`. A number beyond what a store holds is none."""
    if _ASIDE.search(name):
        return None
    named = next((match for pattern in _PATTERNS if (match := pattern.search(name))), None)
    step = None if named is None else _number(named["digits"], (named["rest"] or "").lower())
    return None if step is None or step > LAST_STEP else step


def _number(digits: str, rest: str) -> int | None:
    whole = re.sub("[_,]", "", digits)
    if not rest:
        return int(whole) if len(whole) <= _MOST_DIGITS else None
    power = int(rest.partition("e")[2]) if "e" in rest else _TIMES[rest[-1]]
    if power > _MOST_ZEROS:
        return None
    fraction = re.split("[ekmb]", rest)[0]
    value = Decimal(f"{whole}{fraction}").scaleb(power)
    return int(value) if value == int(value) else None


def counts_epochs(name: str) -> bool:
    """Whether the number in a name is one of epochs, and not of steps."""
    return next((at for at, pattern in enumerate(_PATTERNS) if pattern.search(name)), 0) == _EPOCHS


def find(
    where: str | os.PathLike[str], revisions: Sequence[str] = (), odd: list[str] | None = None
) -> list[FoundCheckpoint]:
    """The checkpoints at `where` in order of step.

    Parameters
    ----------
    where
        A folder, local or behind an fsspec URL, with checkpoints in it, or one folder deeper where only one has any;
        a folder whose name tells no step has the one that its trainer_state.json or training.json tells;
        or a model on the Hub, whose branches and tags named after a step are its checkpoints.
    revisions
        Of a model on the Hub: only these.
    odd
        Takes a line for each checkpoint that is left out: a second one of a step, or one that counts epochs among
        others that count steps. Without it, these are an error.

    Raises `UsageError` where several folders hold checkpoints of their own, and where `revisions` make no sense.
    """
    text = os.fspath(where)
    address = hub_address(text)
    if address is not None:
        return _ordered(_on_hub(address, revisions), odd)
    if revisions:
        raise UsageError("only models on the Hugging Face Hub have revisions", where=text, fix="leave --revisions out")
    return _ordered(_in_folder(open_folder(text), _local(text), _DEPTH), odd)


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
    files = " or ".join(f"{file} ({key})" for file, key in _TOLD)
    fix = f"names are {_EXAMPLES}; or put {files} beside the weights of each"
    return UnreadableError("holds no checkpoints with a step in their names", where=where, fix=fix)


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
    checkpoints = [FoundCheckpoint(step, name, f"{uri.rstrip('/')}/{name}") for step, name in here if step is not None]
    unnamed = sorted(name for name in folder.subfolders() if step_of(name) is None and not _ASIDE.search(name))
    if depth == 1:
        return checkpoints
    if checkpoints:
        known = {one.step for one in checkpoints}
        if any(counts_epochs(one.name) for one in checkpoints):
            return checkpoints
        return checkpoints + [one for one in _with_told_steps(unnamed, uri) if one.step not in known]
    return _below(folder, uri, depth) or _with_told_steps(unnamed, uri)


def _with_told_steps(names: Iterable[str], uri: str) -> list[FoundCheckpoint]:
    """Folders of weights whose names tell no step, by what their trainer wrote beside the weights."""
    found = []
    for name in names:
        inner = f"{uri.rstrip('/')}/{name}"
        try:
            step = told_step(open_folder(inner))
        except UnreadableError:  # a folder that may not be looked into is no checkpoint
            continue
        if step is not None:
            found.append(FoundCheckpoint(step, name, inner))
    return found


def told_step(folder: Folder) -> int | None:
    """The step that lies beside the weights of a folder (`_TOLD`); None where there are none, or it tells none."""
    names = folder.names()
    if not any(name.endswith(_FILES) and not is_side_file(name) for name in names):
        return None
    for file, key in _TOLD:
        if file not in names:
            continue
        try:
            step = folder.json(file).get(key)
        except UnreadableError:  # it may be being written
            continue
        if isinstance(step, int) and not isinstance(step, bool) and 0 <= step < 10**_MOST_ZEROS:
            return step
    return None


def _below(folder: Folder, uri: str, depth: int) -> list[FoundCheckpoint]:
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


def _ordered(checkpoints: Iterable[FoundCheckpoint], odd: list[str] | None) -> list[FoundCheckpoint]:
    """In order of step, each step once. Of several of one step, the one with the plainest name is the checkpoint."""
    listed = list(checkpoints)
    epochs = [one for one in listed if counts_epochs(one.name)]
    if epochs and len(epochs) < len(listed):
        other = next(one for one in listed if one not in epochs)
        if odd is None:
            fix = "move those of one kind elsewhere, or name all of them after steps"
            raise UsageError(f"{epochs[0].name} counts epochs and {other.name} counts steps", where=other.uri, fix=fix)
        odd += [f"{one.name} is left out: it counts epochs, and {other.name} counts steps" for one in epochs]
        listed = [one for one in listed if one not in epochs]
    ordered: list[FoundCheckpoint] = []
    for one in sorted(listed, key=lambda one: (one.step, len(one.name), one.name)):
        if not ordered or ordered[-1].step != one.step:
            ordered.append(one)
            continue
        first = ordered[-1]
        if odd is None:
            clash = f"{first.name} and {one.name} are both step {one.step}"
            raise UsageError(clash, where=first.uri, fix="keep one, or move the other")
        odd.append(f"{one.name} is left out: it is step {one.step} too, as {first.name}")
    return ordered
