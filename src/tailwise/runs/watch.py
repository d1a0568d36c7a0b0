"""Watching a place where checkpoints appear: each is audited once, as soon as it is all there."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from tailwise.errors import UnreadableError
from tailwise.runs.complete import Look, Signature, look
from tailwise.runs.found import Found, find
from tailwise.runs.sink import Outcome, Sink

_CHANGED = "it changed"


@dataclass
class Watch:
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

    def round(self) -> Iterator[Outcome]:
        """Look once, and audit what is new and whole. Afterwards, `waiting` says what is not, and why."""
        self.odd = []
        there = find(self.where, self.revisions, self.odd)
        done = self.sink.known(there)
        seen, self.waiting = self._seen, {}
        self._seen = {}
        for found in there:
            if found.step in done:
                continue
            now = look(found)
            self._seen[found.name] = now.signature
            why = now.lacks or self._unsettled(now, seen.get(found.name))
            if why:
                self.waiting[found.name] = why
            elif self._failed.get(found.name) != now.signature:
                yield self._taken(found, now)

    def _unsettled(self, now: Look, before: Signature | None) -> str:
        """Why a checkpoint may still be changing, "" where it is not."""
        if before == now.signature or now.changed is None:
            return ""
        age = self.clock() - now.changed
        return "" if age >= self.settle else f"{_CHANGED} {max(age, 0.0):.0f} s ago"

    def _taken(self, found: Found, now: Look) -> Outcome:
        outcome = self.sink.take(found)
        if outcome.audit is None:
            self._failed[found.name] = now.signature
        return outcome


def follow(
    watch: Watch, interval: float, sleep: Callable[[float], None] = time.sleep, trouble: Callable[[str], None] = print
) -> Iterator[Outcome]:
    """Rounds without end. A place that is away for a while, and what a checkpoint lacks, are said once."""
    said: set[str] = set()
    while True:
        try:
            yield from watch.round()
            now = {f"{name} waits: {why}" for name, why in watch.waiting.items() if not why.startswith(_CHANGED)}
            now |= set(watch.odd)
        except UnreadableError as error:
            now = {str(error)}
        for text in sorted(now - said):
            trouble(text)
        said = now
        sleep(interval)


def once(watch: Watch, sleep: Callable[[float], None] = time.sleep) -> Iterator[Outcome]:
    """One round, and a second one for what had changed just before it."""
    yield from watch.round()
    if any(why.startswith(_CHANGED) for why in watch.waiting.values()):
        sleep(watch.settle)
        yield from watch.round()
