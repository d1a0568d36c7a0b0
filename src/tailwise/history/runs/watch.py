"""Watching a place where checkpoints appear: each is audited once, as soon as it is all there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tailwise.checkpoints.bytesource import Folder
from tailwise.checkpoints.open import open_checkpoint, open_folder
from tailwise.core.errors import TailwiseError, UnreadableError
from tailwise.history.runs.found import FoundCheckpoint, find, hub_address
from tailwise.history.runs.sink import CheckpointOutcome, Sink

_CHANGED = "it changed"


@dataclass
class RunWatch:
    """One place, what goes on there, and when it was seen."""

    where: str
    sink: Sink
    revisions: Sequence[str] = ()
    settle: float = 10.0  # seconds without a change after which a checkpoint is taken to be whole
    clock: Callable[[], float] = time.time
    waiting: dict[str, str] = field(default_factory=dict)  # name → what it lacks
    odd: list[str] = field(default_factory=list)  # of the last look: checkpoints that are left out, and why
    _seen: dict[str, Signature] = field(default_factory=dict)
    _failed: dict[str, Signature] = field(default_factory=dict)  # not tried again until it changes

    def round(self) -> Iterator[CheckpointOutcome]:
        """Look once, and audit what is new and whole. Afterwards, `waiting` says what is not, and why."""
        self.odd = []
        there = find(self.where, self.revisions, self.odd)
        done = self.sink.known(there)
        seen, self.waiting = self._seen, {}
        self._seen = {}
        for checkpoint in there:
            if checkpoint.step in done:
                continue
            now = look(checkpoint)
            self._seen[checkpoint.name] = now.signature
            why = now.lacks or self._unsettled(now, seen.get(checkpoint.name))
            if why:
                self.waiting[checkpoint.name] = why
            elif self._failed.get(checkpoint.name) != now.signature:
                yield self._taken(checkpoint, now)

    def _unsettled(self, now: CheckpointState, before: Signature | None) -> str:
        """Why a checkpoint may still be changing, "" where it is not."""
        if before == now.signature or now.changed is None:
            return ""
        age = self.clock() - now.changed
        return "" if age >= self.settle else f"{_CHANGED} {max(age, 0.0):.0f} s ago"

    def _taken(self, checkpoint: FoundCheckpoint, now: CheckpointState) -> CheckpointOutcome:
        outcome = self.sink.take(checkpoint)
        if outcome.audit is None:
            self._failed[checkpoint.name] = now.signature
        return outcome


def follow(
    watch: RunWatch,
    interval: float,
    sleep: Callable[[float], None] = time.sleep,
    trouble: Callable[[str], None] = print,
) -> Iterator[CheckpointOutcome]:
    """Rounds without end. A place that is away for a while, and what a checkpoint lacks, are said once."""
    told: set[str] = set()
    while True:
        try:
            yield from watch.round()
            now = {f"{name} waits: {why}" for name, why in watch.waiting.items() if not why.startswith(_CHANGED)}
            now |= set(watch.odd)
        except UnreadableError as error:
            now = {str(error)}
        for text in sorted(now - told):
            trouble(text)
        told = now
        sleep(interval)


def once(watch: RunWatch, sleep: Callable[[float], None] = time.sleep) -> Iterator[CheckpointOutcome]:
    """One round, and a second one for what had changed just before it."""
    yield from watch.round()
    if any(why.startswith(_CHANGED) for why in watch.waiting.values()):
        sleep(watch.settle)
        yield from watch.round()


_SHARD = re.compile(r"-\d{3,}-of-(\d{3,})\.(safetensors|bin)$")
_UNFINISHED = re.compile(r"\.(?:tmp|temp|part|partial|incomplete)$", re.IGNORECASE)

Signature = tuple[tuple[str, int, float | None], ...]


@dataclass(frozen=True)
class CheckpointState:
    """What a checkpoint looked like at one moment."""

    lacks: str  # what keeps it from being read, "" where nothing does
    signature: Signature = ()  # changes while it is being written
    changed: float | None = None  # time of the last change, where it is known


def look(checkpoint: FoundCheckpoint) -> CheckpointState:
    """Look at a checkpoint: its files' names and sizes, and its headers. No weight is read."""
    if hub_address(checkpoint.uri) is not None:
        return CheckpointState("")  # a commit is there as a whole
    try:
        signature, lacks = _files(checkpoint)
        if not lacks:
            # A safetensors file whose header promises more bytes than there are is refused here; so is half a zip.
            open_checkpoint(checkpoint.uri).close()
    except TailwiseError as error:
        return CheckpointState(error.what)
    times = [time for _, _, time in signature if time is not None]
    return CheckpointState(lacks, signature, max(times, default=None))


def _files(checkpoint: FoundCheckpoint) -> tuple[Signature, str]:
    parent, _, name = checkpoint.uri.rpartition("/")
    above = open_folder(parent or "/")
    if name in above.names():
        stamp = above.stamps().get(name)
        return ((), "it is not there any more") if stamp is None else (((name, *stamp),), "")
    folder = open_folder(checkpoint.uri)
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
