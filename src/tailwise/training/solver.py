"""The full measurement: an audit of a snapshot, on a thread of its own with one BLAS thread and a low priority.

A thread is enough, since LAPACK and BLAS release the interpreter lock: beside one that audits without a pause, a
training step was 4 to 6 % longer, and its own processor time the same. Without the low priority, on a machine with
fewer free cores than threads, it was three times as long.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from typing_extensions import override

from tailwise.audits.cache import Baselines, Cache
from tailwise.audits.rows import LayerRow
from tailwise.audits.work import Worker, failure
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.core.recipe import Recipe
from tailwise.spectrum.spectrum import Spectrum
from tailwise.training.cheap import dense_matrix, stamp, to_host, unchanged
from tailwise.training.live import LiveModel

if TYPE_CHECKING:
    from tailwise.training.live import LiveModel, MatrixGroup, Tensors
    from tailwise.training.processes import Faults, Ranks


@dataclass
class Snapshot:
    """Weights as they were at one step."""

    step: int
    time: float
    parts: list[tuple[MatrixGroup, dict[str, torch.Tensor]]]  # this rank's groups, and their tensors on the CPU
    events: list[Any]  # of copies that are under way
    unchanged: tuple[str, ...]  # matrices that were not copied, since they are as they were
    left: int  # matrices that did not fit, whose turn comes next

    def wait(self) -> None:
        """Until every copy has arrived."""
        for event in self.events:
            event.synchronize()


class Camera:
    """Takes snapshots of at most `limit` bytes. What does not fit is taken first the next time."""

    def __init__(self, live: LiveModel, ranks: Ranks, faults: Faults, limit: int) -> None:
        self._live, self._ranks, self._faults, self._limit = live, ranks, faults, limit
        self._stamps: dict[tuple[str, ...], tuple[Any, ...]] = {}
        self._turn: dict[tuple[str, ...], int] = {}  # snapshot in which each group was last taken
        self._count = 0

    @torch.no_grad()
    def take(self, tensors: Tensors, step: int, time: float) -> Snapshot:
        """Copy what changed. On a GPU the copies are enqueued behind the step, and ahead of the next one."""
        changed = [group for group in self._live.groups if not unchanged(group, tensors, self._stamps)]
        picked, left = self._picked(changed)
        self._count += 1
        parts, events = list[Any](), list[Any]()
        self._ranks.visit(picked, tensors, lambda g, whole: parts.append((g, _copied(whole, events))), self._faults)
        for group in picked:
            self._turn[group.tensors] = self._count
            self._stamps[group.tensors] = stamp(group, tensors)
        same = [group for group in self._live.groups if group not in changed]
        names = tuple(source.name for group in same for source in group.sources)
        return Snapshot(step, time, parts, events, names, sum(len(group.sources) for group in left))

    def forget(self) -> None:
        """Trust nothing of before: the model's tensors are others now."""
        self._stamps, self._turn = {}, {}

    def _picked(self, groups: list[MatrixGroup]) -> tuple[list[MatrixGroup], list[MatrixGroup]]:
        """The groups that were not taken for longest, as many as fit; at least one."""
        waiting = sorted(groups, key=lambda group: self._turn.get(group.tensors, 0))
        room, picked = self._limit * self._ranks.world if self._ranks.sharded else self._limit, list[Any]()
        for group in waiting:
            if picked and group.nbytes > room:
                break
            picked.append(group)
            room -= group.nbytes
        return picked, waiting[len(picked) :]


def _copied(tensors: Mapping[str, torch.Tensor], events: list[Any]) -> dict[str, torch.Tensor]:
    return {name: to_host(tensor, events) for name, tensor in tensors.items()}


#: Niceness of the solver's thread, where the system has one for each thread.
NICE = 19


@dataclass
class RankMeasurements:
    """What came out of a snapshot on one rank."""

    step: int
    time: float
    layers: dict[str, dict[str, float]] = field(default_factory=dict)
    troubles: dict[str, str] = field(default_factory=dict)  # matrix → why it has no numbers
    equal: list[str] = field(default_factory=list)  # matrices whose content is as it was
    unchanged: tuple[str, ...] = ()  # matrices that were not copied
    left: int = 0
    stopped: int = 0  # matrices that were not reached
    seconds: float = 0.0  # of the processor


class Recent(Cache):
    """The spectra of this snapshot and the one before, in memory and by content."""

    def __init__(self) -> None:
        super().__init__(None)
        self._now: dict[str, Spectrum] = {}
        self._before: dict[str, Spectrum] = {}

    @override
    def spectrum(self, key: str) -> Spectrum | None:
        spectrum = self._now.get(key) or self._before.get(key)
        if spectrum is not None:
            self._now[key] = spectrum
        return spectrum

    @override
    def keep_spectrum(self, key: str, spectrum: Spectrum) -> None:
        self._now[key] = spectrum

    def turn(self) -> None:
        """Begin with another snapshot."""
        self._before, self._now = self._now, {}


class Solver:
    """Measures one snapshot at a time on its thread, and hands each result to `done`."""

    def __init__(self, live: LiveModel, recipe: Recipe, full: str, done: Callable[[RankMeasurements], None]) -> None:
        self._live, self._recipe, self._full, self._done = live, recipe, full, done
        self._cache = Recent()
        self._baselines = Baselines(self._cache)
        self._job: Snapshot | None = None
        self._wake, self._ready = threading.Condition(), threading.Event()
        self._closing, self.stop = False, threading.Event()
        self._thread = threading.Thread(target=self._run, name="tailwise-solver", daemon=True)
        self._start()

    @property
    def busy(self) -> bool:
        """Whether a snapshot is being measured."""
        with self._wake:
            return self._job is not None

    def submit(self, snapshot: Snapshot) -> None:
        """Measure a snapshot; there must be none under way."""
        with self._wake:
            self._job = snapshot
            self._wake.notify_all()

    def close(self, timeout: float) -> None:
        """Let the one under way end; after `timeout` seconds, at its next matrix."""
        with self._wake:
            self._closing = True
            self._wake.notify_all()
        self._thread.join(timeout)
        self.stop.set()
        self._thread.join(timeout)

    def _start(self) -> None:
        import torch

        # Setting the number of threads holds for the thread that does it, and for threads that begin later.
        threads = torch.get_num_threads()
        self._thread.start()
        self._ready.wait()
        torch.set_num_threads(threads)

    def _run(self) -> None:
        _become_humble()
        self._ready.set()
        while (job := self._next()) is not None:
            try:
                measurements = self._measured(job)
            except Exception as error:
                measurements = RankMeasurements(job.step, job.time, troubles={"the snapshot": failure(error)[1]})
            self._done(measurements)
            del job
            with self._wake:
                self._job = None
                self._wake.notify_all()

    def _next(self) -> Snapshot | None:
        with self._wake:
            self._wake.wait_for(lambda: self._job is not None or self._closing)
            return self._job

    def _measured(self, job: Snapshot) -> RankMeasurements:
        began = time.thread_time()
        measurements = RankMeasurements(job.step, job.time, unchanged=job.unchanged, left=job.left)
        self._cache.turn()
        job.wait()
        while job.parts:
            group, tensors = job.parts.pop(0)
            try:
                checkpoint = self._live.checkpoint(group, tensors)
            except Exception as error:
                measurements.troubles |= {source.name: failure(error)[1] for source in group.sources}
                continue
            for source in group.sources:
                self._take(source, checkpoint, measurements)
        measurements.seconds = time.thread_time() - began
        return measurements

    def _take(self, source: MatrixSource, checkpoint: Checkpoint, measurements: RankMeasurements) -> None:
        if self.stop.is_set():
            measurements.stopped += 1
        elif self._full == "lanczos":
            self._estimate(source, checkpoint, measurements)
        else:
            row, _ = Worker(checkpoint, self._recipe, "cpu", self._cache, self._baselines)(source)
            _add(row, measurements)

    def _estimate(self, source: MatrixSource, checkpoint: Checkpoint, measurements: RankMeasurements) -> None:
        from tailwise.spectrum.lanczos import estimate

        try:
            values = estimate(dense_matrix(load(source, checkpoint)[0]), seed=self._recipe.seed).metrics()
        except Exception as error:
            measurements.troubles[source.name] = failure(error)[1]
        else:
            measurements.layers[source.name] = values


def _add(row: LayerRow, measurements: RankMeasurements) -> None:
    if not row.measured:
        measurements.troubles[row.name] = f"{row.status}: {row.reason}"
        return
    measurements.layers[row.name] = {name: value for name, value in row.metrics.items() if value is not None}
    if row.reused:
        measurements.equal.append(row.name)


def _become_humble() -> None:
    """One BLAS thread, and the processor only when nobody else wants it."""
    import torch

    torch.set_num_threads(1)
    with contextlib.suppress(AttributeError, OSError):
        # On Linux a thread has a niceness of its own.
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICE)


def to_json(measurements: RankMeasurements) -> dict[str, Any]:
    """Plain JSON types."""
    return {**measurements.__dict__, "unchanged": list(measurements.unchanged)}


def from_json(given: dict[str, Any]) -> RankMeasurements:
    """What `to_json` wrote."""
    return RankMeasurements(**{**given, "unchanged": tuple(given["unchanged"])})
