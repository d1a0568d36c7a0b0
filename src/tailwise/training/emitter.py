"""From measurements to points, sinks and alarms, on a thread of its own."""

from __future__ import annotations

import math
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.history.point import Alarm, Cadence, Point, Resumed
from tailwise.training.losses import LossJob, Summary
from tailwise.training.processes import Faults, Ranks
from tailwise.training.solver import RankMeasurements, from_json, to_json

if TYPE_CHECKING:
    from tailwise.training.cheap import Pending
    from tailwise.training.options import Rule
    from tailwise.training.sinks import PointSink

#: Points that may wait for a slow sink; later ones are dropped and counted.
WAITING = 256
_POLL = 0.05


@dataclass
class CheapJob:
    """A cheap measurement that a device may still be computing."""

    step: int
    time: float
    pending: Pending
    scalars: dict[str, Any]  # numbers, or tensors on their way to the CPU
    notes: tuple[str, ...]
    losses: LossJob | None = None  # of the steps since the last look
    gradients: dict[str, Any] = field(default_factory=dict)  # matrix → norm


@dataclass
class NoteJob:
    """Numbers of the whole model at a step, which need no measurement."""

    step: int
    time: float
    scalars: dict[str, Any]
    events: list[Any]


Job = CheapJob | NoteJob | LossJob | RankMeasurements | Resumed


@dataclass(frozen=True)
class Outlet:
    """Where points go."""

    run: str
    sinks: Sequence[PointSink]  # take points
    histories: Sequence[Any]  # take alarms as well
    rules: Sequence[Rule]
    on_alarm: Callable[[Alarm], object] | None


class Emitter:
    """Writes points in the order in which their measurements end."""

    def __init__(self, outlet: Outlet, ranks: Ranks, faults: Faults) -> None:
        self._outlet, self._ranks, self._faults = outlet, ranks, faults
        self._queue: queue.Queue[Job | None] = queue.Queue(WAITING)
        self._losses = Summary()
        self._resumed: Resumed | None = None
        self._known: dict[Cadence, Mapping[str, dict[str, float]]] = {"cheap": {}, "full": {}}
        self._full_notes: list[str] = []
        self._own: list[RankMeasurements] = []  # of this rank, waiting for those of the others
        self._theirs: dict[int, RankMeasurements] = {}
        self._merged = 0
        self.alarms: list[Alarm] = []
        self.points, self.dropped, self.background = 0, 0, 0.0
        self._thread = threading.Thread(target=self._run, name="tailwise-emitter", daemon=True)
        self._thread.start()

    def put(self, job: Job) -> None:
        """Hand over a measurement; never waits."""
        try:
            self._queue.put_nowait(job)
        except queue.Full:
            self.dropped += 1

    def close(self, timeout: float) -> None:
        """Emit what is waiting."""
        self._deadline = timeout
        try:
            self._queue.put(None, timeout=timeout)
        except queue.Full:
            return
        self._thread.join(timeout + 1.0)

    def _run(self) -> None:
        while (job := self._queue.get()) is not None:
            self._attempt("a point", self._handle, job)
            del job
        waiting = threading.Event()
        for _ in range(int(self._deadline / _POLL)):
            if not self._own:
                break
            waiting.wait(_POLL)  # for the other ranks
            self._attempt("a point", self._merge)
        for index, sink in enumerate(self._outlet.sinks):
            if callable(flush := getattr(sink, "flush", None)):  # of rows that wait
                self._attempt(f"sink {index} ({type(sink).__name__})", flush)

    def _handle(self, job: Job) -> None:
        if isinstance(job, CheapJob):
            self._cheap(job)
        elif isinstance(job, LossJob):
            self._look_at(job)
        elif isinstance(job, NoteJob):
            self._note(job)
        elif isinstance(job, Resumed):
            self._resumed = job
            for history in self._outlet.histories:
                history.write(job)
        elif self._ranks.sharded and self._ranks.rank != 0:
            self.background += job.seconds
            self._ranks.send(to_json(job))
            return
        else:
            self.background += job.seconds
            self._own.append(job)
        self._attempt("the results of the other ranks", self._merge)

    def _cheap(self, job: CheapJob) -> None:
        if job.losses is not None:
            self._look_at(job.losses)
        layers = job.pending.result()
        known = self._known["cheap"]
        same = [name for name in job.pending.unchanged if name in known]
        layers |= {name: {**known[name], "update_ratio": 0.0} for name in same}
        for name in job.gradients.keys() & layers.keys():
            layers[name]["grad_norm"] = float(job.gradients[name])
        self._known["cheap"] = layers
        if self._ranks.rank != 0:
            return
        scalars, words = _numbers(job.scalars)
        scalars |= self._losses.take()
        bad = [name for name, values in layers.items() if not all(map(math.isfinite, values.values()))]
        zero = [name for name, values in layers.items() if values.get("frobenius_norm") == 0.0]
        notes = [*job.notes, *_listed("not finite", bad), *_listed("zeros", zero), *_listed("unchanged, reused", same)]
        notes += _listed("no single number", words)
        self._emit(Point(self._outlet.run, job.step, "cheap", job.time, layers, scalars, tuple(notes)))

    def _note(self, job: NoteJob) -> None:
        for event in job.events:
            event.synchronize()
        scalars, words = _numbers(job.scalars)
        notes = tuple(_listed("no single number", words))
        self._emit(Point(self._outlet.run, job.step, "cheap", job.time, {}, scalars, notes))

    def _look_at(self, job: LossJob) -> None:
        values = job.result()
        self._losses.add(values)
        for index, rule in enumerate(self._outlet.rules):
            see = getattr(rule, "see_losses", None)
            if see is not None:
                self._attempt(f"rule {index}", lambda see=see: self._raise(see(self._outlet.run, job.steps, values)))

    def _merge(self) -> None:
        """Emit full measurements of which every rank's part is there."""
        while self._own:
            others = range(1, self._ranks.world) if self._ranks.sharded else ()
            for rank in others:
                if rank not in self._theirs and (received := self._ranks.receive(rank, self._merged)) is not None:
                    self._theirs[rank] = from_json(received)
            if len(self._theirs) < len(others):
                return
            parts, self._theirs = [self._own.pop(0), *self._theirs.values()], {}
            self._merged += 1
            self._full(parts)

    def _full(self, parts: list[RankMeasurements]) -> None:
        first, known = parts[0], self._known["full"]
        if (back := self._resumed) is not None and first.step > back.step and first.time < back.time:
            return  # of a branch that ended while it was being measured
        layers = {name: values for part in parts for name, values in part.layers.items()}
        troubles = {name: why for part in parts for name, why in part.troubles.items()}
        same = [name for name in first.unchanged if name in known]
        layers |= {name: known[name] for name in same}
        self._known["full"] = layers
        equal = [name for part in parts for name in part.equal if name in known]
        notes = [*(f"{name} is not measured: {why}" for name, why in troubles.items())]
        notes += _listed("unchanged, reused", sorted([*same, *equal]))
        if first.left:
            notes.append(f"{first.left} matrices did not fit into one snapshot; their turn comes next")
        if stopped := sum(part.stopped for part in parts):
            notes.append(f"{stopped} matrices were not reached before the monitor was closed")
        self._emit(Point(self._outlet.run, first.step, "full", first.time, layers, notes=tuple(notes)))

    def _emit(self, point: Point) -> None:
        self.points += 1
        for index, sink in enumerate([*self._outlet.histories, *self._outlet.sinks]):
            self._attempt(f"sink {index} ({type(sink).__name__})", sink.write, point)
        for index, rule in enumerate(self._outlet.rules):
            self._attempt(f"rule {index}", self._judge, rule, point)

    def _judge(self, rule: Rule, point: Point) -> None:
        self._raise(rule(point))

    def _raise(self, alarms: Sequence[Alarm]) -> None:
        for alarm in alarms:
            self.alarms.append(alarm)
            for history in self._outlet.histories:
                self._attempt("the history", history.write, alarm)
            if self._outlet.on_alarm is not None:
                self._attempt("on_alarm", self._outlet.on_alarm, alarm)

    def _attempt(self, what: str, function: Callable[..., object], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception as error:
            self._faults.note(what, error)


def _numbers(given: Mapping[str, Any]) -> tuple[dict[str, float], list[str]]:
    """What is a number, and the names of what is not."""
    numbers = {name: _number(value) for name, value in given.items()}
    return {name: n for name, n in numbers.items() if n is not None}, [name for name, n in numbers.items() if n is None]


def _number(value: Any) -> float | None:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        return None


def _listed(what: str, names: Sequence[str], most: int = 5) -> list[str]:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return [f"{what}: {', '.join(names[:most])}{more}"] if names else []
