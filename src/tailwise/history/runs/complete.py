"""Whether a checkpoint is all there, or still being written."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailwise.checkpoints.folder import Folder
from tailwise.checkpoints.open import open_checkpoint, open_folder
from tailwise.core.errors import TailwiseError
from tailwise.history.runs.found import Found, hub_address

_SHARD = re.compile(r"-\d{3,}-of-(\d{3,})\.(safetensors|bin)$")
_UNFINISHED = re.compile(r"\.(?:tmp|temp|part|partial|incomplete)$", re.IGNORECASE)

Signature = tuple[tuple[str, int, float | None], ...]


@dataclass(frozen=True)
class Look:
    """What a checkpoint looked like at one moment."""

    lacks: str  # what keeps it from being read, "" where nothing does
    signature: Signature = ()  # changes while it is being written
    changed: float | None = None  # time of the last change, where it is known


def look(found: Found) -> Look:
    """Look at a checkpoint: its files' names and sizes, and its headers. No weight is read."""
    if hub_address(found.uri) is not None:
        return Look("")  # a commit is there as a whole
    try:
        signature, lacks = _files(found)
        if not lacks:
            # A safetensors file whose header promises more bytes than there are is refused here; so is half a zip.
            open_checkpoint(found.uri).close()
    except TailwiseError as error:
        return Look(error.what)
    times = [time for _, _, time in signature if time is not None]
    return Look(lacks, signature, max(times, default=None))


def _files(found: Found) -> tuple[Signature, str]:
    parent, _, name = found.uri.rpartition("/")
    above = open_folder(parent or "/")
    if name in above.names():
        stamp = above.stamps().get(name)
        return ((), "it is not there any more") if stamp is None else (((name, *stamp),), "")
    folder = open_folder(found.uri)
    stamps = sorted((name, *stamp) for name, stamp in folder.stamps().items())
    return tuple(stamps), _lacks(folder)


def _lacks(folder: Folder) -> str:
    names = folder.names()
    unfinished = sorted(name for name in names if _UNFINISHED.search(name))
    if unfinished:
        return f"{unfinished[0]} is still being written"
    # Libraries write the index after the last shard, so without it there may be more to come.
    shards = [match for name in names if (match := _SHARD.search(name)) and int(match[1]) > 1]
    if shards and not any(name.endswith(".index.json") for name in names):
        return "its index is not there yet"
    return ""
