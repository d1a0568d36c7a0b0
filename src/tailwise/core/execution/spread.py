"""Independent items over an engine whose workers may die, stall, or be cut off: each item comes back once.

An item is measured, or given up with a reason; never both, and never twice. What a dead worker had is done again, apart
from its neighbours, so that an item that kills workers gives up alone. When nothing is left to start, what takes far
longer than its like is started a second time elsewhere, and the first answer counts.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Generic, TypeVar

from tailwise import __version__
from tailwise.core.errors import UsageError
from tailwise.core.execution.engine import Engine, Fault
from tailwise.core.recipe import RunOptions

Item = TypeVar("Item")
Result = TypeVar("Result")

#: Times that an item is tried whose store cannot be reached.
ATTEMPTS = 3
#: Times in a row that a lost connection may come back without a result in between.
_RECOVERIES = 5
#: Tasks for each slot: one runs, the next is there when it ends.
_AHEAD = 2
#: Of the work that is left, the part that one task takes at most: 1 / (_SHARE × slots). A heuristic: large tasks first
#: for fewer messages, small ones last so that all workers end together.
_SHARE = 4
_TICK = 1.0


@dataclass(frozen=True)
class SpreadWork(Generic[Item, Result]):
    """What is to be done with each item."""

    run: Callable[[Any], Sequence[Result]]  # on a worker: what `pack` made → one result an item; picklable
    pack: Callable[[Sequence[Item]], Any]  # here, just before a task starts; picklable
    give_up: Callable[[Item, str], Result]  # here: the result of an item that could not be done, and why
    cost: Callable[[Item], float] = lambda _: 1.0  # relative time
    again: Callable[[Result], bool] = lambda _: False  # whether it may come out otherwise if it is tried later
    most: int = 1  # items in one task


@dataclass(frozen=True)
class SameVersion:
    """`run`, where the worker has the tailwise that sent it: another may give other numbers without a word."""

    run: Callable[[Any], Any]
    version: str = __version__

    def __call__(self, packed: Any) -> Any:
        """On a worker."""
        if self.version != __version__:
            what = f"the worker has tailwise {__version__}, and {self.version} sent the task"
            raise UsageError(what, fix="install the same version on every worker")
        return self.run(packed)


@dataclass(frozen=True)
class Patience:
    """How long is waited for what."""

    silence: float = 600.0  # seconds without any answer after which the rest is given up
    copy: float = 30.0  # seconds after which a straggler is started a second time, at the earliest
    retry: float = 2.0  # seconds before an item is tried again, doubled each time


def patience_of(options: RunOptions) -> Patience:
    """How long a run waits."""
    return Patience(options.patience, options.patience / 20, options.patience / 300)


@dataclass
class _Flight:
    items: tuple[int, ...]
    began: float = field(default_factory=time.monotonic)
    copied: bool = False


def spread(
    engine: Engine, work: SpreadWork[Item, Result], items: Iterable[Item], patience: Patience | None = None
) -> Iterator[Result]:
    """Results as they come, one an item. Items start in the order given."""
    return _Spread(engine, work, list(items), patience or Patience()).results()


class _Spread(Generic[Item, Result]):
    def __init__(
        self, engine: Engine, work: SpreadWork[Item, Result], items: Sequence[Item], patience: Patience
    ) -> None:
        self._engine, self._work, self._items, self._patience = engine, work, items, patience
        self._waiting = deque(range(len(items)))
        self._later: dict[int, float] = {}  # item → when it may be tried again
        self._attempts: Counter[int] = Counter()
        self._left = set(range(len(items)))
        self._running: dict[Future[Sequence[Result]], _Flight] = {}
        self._paces: list[float] = []  # seconds for a unit of cost
        self._heard = time.monotonic()
        self._lost = 0
        self._tick = min(_TICK, patience.copy)

    def results(self) -> Iterator[Result]:
        try:
            while self._left:
                yield from self._start()
                done, _ = wait(self._running, timeout=self._tick, return_when=FIRST_COMPLETED)
                if not self._running and self._left:
                    time.sleep(self._tick / 10)
                for future in done:
                    yield from self._land(future)
                if not done:
                    yield from self._look_after()
        finally:
            for future in self._running:
                future.cancel()

    def _start(self) -> Iterator[Result]:
        """Start tasks while there is room for them."""
        now = time.monotonic()
        for item in [item for item, at in self._later.items() if at <= now]:
            del self._later[item]
            self._waiting.append(item)
        slots = self._engine.slots()
        while self._waiting and len(self._running) < slots * _AHEAD:
            batch = self._next(slots)
            if batch and (error := self._submit(batch)) is not None:
                yield from self._failed(_Flight(batch), error)
                return

    def _next(self, slots: int) -> tuple[int, ...]:
        left = sum(self._cost(item) for item in self._waiting)
        room, taken = left / (_SHARE * slots), list[int]()
        while self._waiting and len(taken) < self._work.most:
            item = self._waiting[0]
            if item not in self._left:  # its copy was faster
                self._waiting.popleft()
                continue
            alone = self._attempts[item] > 0
            if taken and (alone or self._cost(item) > room):
                break
            taken.append(self._waiting.popleft())
            room -= self._cost(item)
            if alone:
                break
        return tuple(taken)

    def _submit(self, batch: tuple[int, ...], *, copied: bool = False) -> Exception | None:
        packed = self._work.pack([self._items[item] for item in batch])
        try:
            self._running[self._engine.submit(SameVersion(self._work.run), packed)] = _Flight(batch, copied=copied)
        except Exception as error:  # each engine has errors of its own
            return error
        return None

    def _land(self, future: Future[Sequence[Result]]) -> Iterator[Result]:
        flight = self._running.pop(future, None)
        if flight is None:  # lost together with another, and started again
            return
        error = CancelledError() if future.cancelled() else future.exception()
        if error is not None:
            yield from self._failed(flight, error)
            return
        self._heard, self._lost = time.monotonic(), 0
        self._paces.append((self._heard - flight.began) / max(sum(map(self._cost, flight.items)), 1e-9))
        for item, result in zip(flight.items, future.result(), strict=True):
            if item not in self._left:
                continue
            if self._work.again(result) and self._attempts[item] + 1 < ATTEMPTS:
                self._try_later(item)
            else:
                self._left.discard(item)
                yield result

    def _try_later(self, item: int) -> None:
        self._later[item] = time.monotonic() + self._patience.retry * 2 ** self._attempts[item]
        self._attempts[item] += 1

    def _failed(self, flight: _Flight, error: BaseException) -> Iterator[Result]:
        fault: Fault = self._engine.fault(error)
        if fault == "connection":
            yield from self._reconnect(error)
            return
        mine = self._not_under_way(flight.items)
        if fault == "worker":
            most = self._engine.attempts
            why = f"its worker died each of {most} times; give workers more memory, or use fewer on a machine"
            lost = [item for item in mine if self._attempts[item] + 1 >= most]
            for item in mine:
                if item not in lost:
                    self._attempts[item] += 1
                    self._waiting.append(item)
            yield from self._give_up(lost, why)
            return
        yield from self._give_up(mine, f"the {self._engine.name} engine could not run it: {_said(error)}")

    def _not_under_way(self, items: Iterable[int]) -> list[int]:
        """Those that are neither done nor under way as a copy."""
        under_way = {item for flight in self._running.values() for item in flight.items} | set(self._waiting)
        return [item for item in items if item in self._left and item not in under_way]

    def _reconnect(self, error: BaseException) -> Iterator[Result]:
        """All that was under way is lost with the connection; start it again when it is back."""
        self._lost += 1
        self._running.clear()
        self._waiting.extendleft(sorted(self._left - set(self._waiting) - self._later.keys(), reverse=True))
        if self._lost > _RECOVERIES or not self._engine.recover(self._patience.silence):
            why = f"the {self._engine.name} engine was lost ({_said(error)}); run it again: what is done is kept"
            yield from self._give_up(sorted(self._left), why)
        self._heard = time.monotonic()

    def _look_after(self) -> Iterator[Result]:
        """Nothing came for a while: copy a straggler, or give up on an engine that says nothing at all."""
        slots = self._engine.slots()
        if not slots:
            self._engine.recover(self._tick)
        now = time.monotonic()
        straggler = self._straggler(now) if len(self._running) < slots * _AHEAD else None
        if straggler is not None:
            straggler.copied, self._heard = True, now
            error = self._submit(tuple(item for item in straggler.items if item in self._left), copied=True)
            if error is not None:
                yield from self._failed(straggler, error)
            return
        dearest = max((self._expected(flight) for flight in self._running.values()), default=0.0)
        if not self._later and now - self._heard > max(self._patience.silence, 20 * dearest):
            silence = f"no worker answered for {now - self._heard:.0f} s"
            why = f"{silence}; start workers and run it again: what is done is kept"
            yield from self._give_up(sorted(self._left), why)

    def _straggler(self, now: float) -> _Flight | None:
        """A task that takes far longer than its like, where nothing else is left to start."""
        if self._waiting or self._later:
            return None
        late = (
            flight
            for flight in self._running.values()
            if not flight.copied and now - flight.began > max(self._patience.copy, 4 * self._expected(flight))
        )
        return next(late, None)

    def _expected(self, flight: _Flight) -> float:
        """Seconds that a task should take, by those so far."""
        return (median(self._paces) if self._paces else 0.0) * sum(map(self._cost, flight.items))

    def _cost(self, item: int) -> float:
        return self._work.cost(self._items[item])

    def _give_up(self, items: Iterable[int], why: str) -> Iterator[Result]:
        for item in items:
            if item in self._left:
                self._left.discard(item)
                yield self._work.give_up(self._items[item], why)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error)[:300]}".rstrip(": ")
