"""`Monitor`: watches a model while it trains, and never blocks or stops the training."""

from __future__ import annotations

import atexit
import secrets
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, Unpack

from tailwise.audits.prepare import Selection, check_estimators
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe
from tailwise.core.validation import shown
from tailwise.history.point import ESTIMATOR, OPTIMIZER, RULES, Alarm, Resumed
from tailwise.history.writer import open_writer
from tailwise.spectrum.metrics.facts import completed
from tailwise.training.alarms import Alarms
from tailwise.training.emitter import CheapJob, Emitter, NoteJob, Outlet
from tailwise.training.live import LiveModel, Tensors
from tailwise.training.losses import Losses, one_loss
from tailwise.training.meter import Kind, Meter, MonitorReport
from tailwise.training.options import MonitorSettings, optimizer_names, options_of, rate_of
from tailwise.training.processes import Faults, Ranks, logger
from tailwise.training.sinks import PointSink

if TYPE_CHECKING:
    import torch

    from tailwise.training.gradients import Gradients

_BUSY = "a full measurement was due while the one before was still running"
_BUDGET = "a {kind} measurement would have cost more than max_overhead"
#: Monitors that nobody has closed: they are when the interpreter ends, so that what they have measured is written.
_OPEN: weakref.WeakSet[Monitor] = weakref.WeakSet()
_LAST = 10.0  # seconds that each may take then


class Monitor:
    """Watches the weights of a model that is being trained.

    Every `every` steps norms are measured on the device, from a few products; every `full_every` steps the weights
    are copied to the CPU and audited on a thread of their own. Where that would take more than `max_overhead` of the
    training's time it is left out and noted. An error in here is logged once and never reaches the training.

    Parameters
    ----------
    model
        The module; what torch.compile, DistributedDataParallel or FSDP2 made of it is understood.
    every
        Steps between cheap measurements.
    history
        Where points go: a `.jsonl` file, a path or URL of a history, or an object with `write(point)`.
    on_alarm
        Called with each alarm that a rule raises, from the monitor's thread. All rules look unless the setting `rules`
        says otherwise; `rules=()` is none.
    settings
        Fields of `tailwise.training.options.Options`.

    Raises `UsageError` for wrong settings and for a model without matrices.

    >>> import torch, tailwise as tw
    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    >>> with tw.Monitor(model, every=5, full="off", history="run.jsonl", max_overhead=1.0) as monitor:
    ...     for step in range(10):
    ...         loss = model(torch.ones(4, 64)).square().mean()
    ...         loss.backward()
    ...         optimizer.step()
    ...         monitor.step(loss=loss)
    >>> monitor.report().steps
    10
    """

    def __init__(
        self,
        model: torch.nn.Module,
        *,
        every: int = 1000,
        history: Any = None,
        on_alarm: Callable[[Alarm], object] | None = None,
        **settings: Unpack[MonitorSettings],
    ) -> None:
        if not hasattr(model, "named_parameters"):
            fix = "give the torch.nn.Module that is trained; `tailwise watch` follows a folder of checkpoints"
            raise UsageError(f"{shown(model)} is no model in training", fix=fix)
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UsageError(f"every is {every!r}", fix="give a whole number of steps, one or more")
        if on_alarm is not None and not callable(on_alarm):
            raise UsageError(f"on_alarm is {on_alarm!r}", fix="give a function of an alarm, such as Log()")
        self._options = options = options_of(settings)
        recipe = completed(Recipe(metrics=tuple(options.metrics), estimator=options.estimator))
        check_estimators(recipe)
        self.every, self.full_every = every, options.full_every or 10 * every
        # Two runs may begin in one second.
        self.run = options.run or f"{datetime.now(UTC):%Y-%m-%dT%H-%M-%S}-{secrets.token_hex(2)}"
        self.step_count = self._looked_at = options.first_step
        self._stride, self._loss_book = 1, Losses(every)
        self._faults, self._meter = Faults(), Meter(options.clock, options.max_overhead)
        self._live = LiveModel(model, recipe, Selection(options.layers, options.role_names))
        self._ranks = Ranks(self._live.tensors())
        names = optimizer_names(options.optimizer)
        self._notes: list[str] = [f"{OPTIMIZER}{names}"] if names else []
        self._notes += [] if options.estimator == "ks" else [f"{ESTIMATOR}{options.estimator}"]
        self._off = self._closed = False
        self._prepared, self._preparing = False, 0.0  # whether weights were kept for the next one, and the time it took
        self._build(recipe, history, on_alarm)
        if self._ranks.measures:
            if options.run:
                self._emitter.put(Resumed(self.run, options.first_step, time.time()))
            self._guarded(self._begin)
        self._meter.start()
        _OPEN.add(self)

    def _build(self, recipe: Recipe, history: Any, on_alarm: Callable[[Alarm], object] | None) -> None:
        from tailwise.training.cheap import Cheap
        from tailwise.training.solver import Camera, Solver

        options, ranks = self._options, self._ranks
        self._opened: list[Any] = []
        self._looking = 0  # alarm rules
        if not ranks.measures:
            return
        sinks = list(options.sinks) if ranks.rank == 0 else []
        if ranks.rank == 0 and isinstance(history, str | Path):
            self._opened.append(open_writer(history))
        elif ranks.rank == 0 and history is not None:
            sinks.append(history)
        for sink in sinks:
            if not isinstance(sink, PointSink):
                raise UsageError(f"{type(sink).__name__} takes no points", fix="give a path, a URL or a write(point)")
        rules = [Alarms()] if options.rules is None else list(options.rules)
        self._looking = sum(len(rule.rules) if isinstance(rule, Alarms) else 1 for rule in rules)
        outlet = Outlet(self.run, sinks, self._opened, rules, on_alarm)
        self._emitter = Emitter(outlet, ranks, self._faults)
        self._cheap = Cheap(self._live, ranks, self._faults)
        if options.gradients:
            from tailwise.training.gradients import Gradients

            self._gradients = Gradients(self._live, ranks, self._faults)
        self._camera = Camera(self._live, ranks, self._faults, options.snapshot_bytes)
        self._solver = None if options.full == "off" else Solver(self._live, recipe, options.full, self._emitter.put)

    def step(self, *, step: int | None = None, loss: Any = None, **scalars: Any) -> None:
        """Say that the optimizer made a step; returns at once unless a measurement is due.

        `step` is the number of the step where the training counts them itself. The `loss` of every step is looked at,
        within `every` steps (of several devices' losses, their mean); `loss` and other `scalars` (numbers or tensors of
        one entry) go into the point if one is due at this step. A tensor is not waited for. What is not there at every
        step goes into `note`.
        """
        before = self.step_count
        try:
            self.step_count = before + 1 if step is None else int(step)
        except (TypeError, ValueError) as error:
            self._faults.note("the number of a step", error)
            return
        self._meter.steps += 1
        if self._off or self._closed or not self._ranks.measures:
            return
        now, every = self.step_count, self.every
        if now <= before:
            self._went_back(now)
        else:
            self._stride = now - before
        if loss is not None:
            loss = one_loss(loss)
            self._take_loss(now, loss)
        if now // every > before // every:
            # Whether a multiple was passed since the last time, which need not be a multiple of `every`.
            since, self._looked_at = min(self._looked_at, before), now
            full = now // self.full_every > since // self.full_every
            self._guarded(self._due, scalars if loss is None else {"loss": loss, **scalars}, full)
        elif (now + self._stride) // every > now // every:
            # One step ahead, of whatever length steps have: two optimizers may count two.
            self._guarded(self._prepare)

    def note(self, **scalars: Any) -> None:
        """Numbers of this step that no measurement gives: the `eval_loss` of an evaluation just done, say.

        They stand in the history at the step that was made last, whether or not a point is due there.
        """
        if not self._ranks.measures or self._closed or not scalars or self._ranks.rank != 0:
            return
        events: list[Any] = []
        try:
            taken = {name: _taken(value, events) for name, value in scalars.items()}
        except Exception as error:
            self._faults.note("a note", error)
            return
        self._emitter.put(NoteJob(self.step_count, time.time(), {**taken, RULES: self._looking}, events))

    def _take_loss(self, step: int, loss: Any) -> None:
        """Every loss, where it is; now and then they are handed on, whether or not a point is due."""
        if self._ranks.rank != 0:
            return
        try:
            job = self._loss_book.add(step, loss)
        except Exception as error:
            self._faults.note("the loss of a step", error)
            return
        if job is not None:
            self._emitter.put(job)

    def _went_back(self, now: int) -> None:
        """The loop counts from an earlier step: it loaded a checkpoint."""
        self._looked_at = min(self._looked_at, now - 1)
        if self._ranks.rank == 0:
            self._emitter.put(Resumed(self.run, now - 1, time.time()))

    @property
    def alarms(self) -> Sequence[Alarm]:
        """The alarms so far."""
        return tuple(self._emitter.alarms) if self._ranks.measures else ()

    def report(self) -> MonitorReport:
        """What was measured, and what it cost."""
        meter, emitter = self._meter, self._emitter if self._ranks.measures else None
        skipped = dict(meter.skipped)
        if emitter is not None and emitter.dropped:
            skipped["a point was dropped, since the sinks are slower than the measurements"] = emitter.dropped
        return MonitorReport(
            steps=meter.steps,
            seconds=meter.seconds,
            spent=meter.spent,
            setup=meter.setup,
            background=emitter.background if emitter is not None else 0.0,
            points=emitter.points if emitter is not None else 0,
            cheap=meter.taken["cheap"],
            full=meter.taken["full"],
            skipped=skipped,
            errors=self._faults.texts,
            alarms=len(self.alarms),
            rules=self._looking,
            after_start=meter.after_start,
        )

    def close(self, timeout: float = 60.0) -> None:
        """Emit what is under way, and let the model go.

        A full measurement that takes longer than `timeout` seconds ends at its next matrix, and what there is of it is
        emitted. Closing twice is allowed.
        """
        if self._closed:
            return
        self._closed = True
        _OPEN.discard(self)
        if self._gradients is not None:
            self._gradients.disarm()
        if self._ranks.measures:
            if (left := self._loss_book.take()) is not None:
                self._emitter.put(left)
            if self._solver is not None:
                self._solver.close(timeout)
            self._emitter.close(timeout)
        for sink in self._opened:
            try:
                sink.close()
            except Exception as error:
                self._faults.note("closing a sink", error)
        if self._ranks.rank == 0 and (trouble := self.report().nothing_taken):
            logger.warning("the run %s: %s", self.run, trouble)

    def __repr__(self) -> str:
        return f"Monitor({self.run!r}, every {self.every} steps, {self.step_count} seen)"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        """Call it outside autocast and gradients; time it, and let nothing out."""
        import torch

        began = self._meter.clock()
        try:
            device = next(iter(self._live.module.parameters()), torch.empty(0)).device.type
            with torch.no_grad(), torch.autocast(device, enabled=False):
                function(*arguments)
        except Exception as error:
            self._faults.note(function.__name__.strip("_"), error)
            # Another rank may be waiting: all of them stop together at the next vote.
            self._broken = self._ranks.sharded
        finally:
            self._meter.spent += self._meter.clock() - began

    _broken = False
    _gradients: Gradients | None = None

    def _vote(self, *votes: bool) -> tuple[bool, ...]:
        """What all ranks agree on. Where one is broken, nothing; sharded ones then stop watching for good."""
        *agreed, sound = self._ranks.agree(*votes, not self._broken, token=self._live.token)
        self._off, self._broken = self._ranks.sharded and not sound, False
        if self._off:
            logger.error("the ranks hold different matrices, or one failed: the monitor is off; the training goes on")
        return tuple(vote and sound for vote in agreed)

    def _begin(self) -> None:
        tensors = self._tensors()
        (sound,) = self._vote(True)
        if sound and self._options.at_start:
            self._measure(tensors, {}, True)
        if sound and self.every == 1:
            self._prepare()

    def _prepare(self) -> None:
        """One step ahead of a measurement: keep rows of the weights."""
        tensors = self._tensors()
        (self._prepared,) = self._vote(self._meter.allows("cheap"))
        if self._prepared:
            began = self._meter.clock()
            self._cheap.remember(tensors)
            if self._gradients is not None:
                self._gradients.arm(self._guarded)
            self._preparing = self._meter.clock() - began

    def _due(self, scalars: dict[str, Any], full: bool) -> None:
        prepared, self._prepared, tensors = self._prepared, False, self._tensors()
        (allowed,) = self._vote(prepared or self._meter.allows("cheap"))
        if not allowed:
            self._skip(_BUDGET.format(kind="cheap"))
            return
        self._measure(tensors, scalars, full)
        if self.every == 1:
            self._prepare()

    def _measure(self, tensors: Tensors, scalars: dict[str, Any], full: bool) -> None:
        if full and self._solver is not None:
            self._take_full(tensors)
        began, now = self._meter.clock(), time.time()
        pending = self._cheap.measure(tensors)
        values = {name: _taken(value, pending.events) for name, value in scalars.items()}
        if "lr" not in values and (rate := rate_of(self._options.optimizer)) is not None:
            values["lr"] = rate
        notes, self._notes = tuple(self._notes), []
        values |= {"monitor_overhead": self._meter.overhead, RULES: self._looking, "trained_share": self._live.trained}
        losses = self._loss_book.take() if self._ranks.rank == 0 else None
        norms = {} if self._gradients is None else self._gradients.take(pending.events)
        self._emitter.put(CheapJob(self.step_count, now, pending, values, notes, losses, norms))
        self._meter.took("cheap", self._preparing + self._meter.clock() - began)

    def _take_full(self, tensors: Tensors) -> None:
        assert self._solver is not None  # noqa: S101 - asked before
        free, allowed = self._vote(not self._solver.busy, self._allows_full())
        if not (free and allowed):
            self._skip(_BUSY if not free else _BUDGET.format(kind="full"))
            return
        began = self._meter.clock()
        self._solver.submit(self._camera.take(tensors, self.step_count, time.time()))
        self._meter.took("full", self._meter.clock() - began)

    def _allows_full(self) -> bool:
        first: Kind = "full"
        return self._meter.taken[first] == 0 or self._meter.allows(first)

    def _skip(self, reason: str) -> None:
        self._meter.skip(reason)
        self._notes.append(f"step {self.step_count}: {reason}")

    def _tensors(self) -> Tensors:
        """The weights as they are now. Never raises: the other ranks wait for this one's vote."""
        try:
            tensors, notes = self._live.refresh()
        except Exception as error:
            self._faults.note("reading the model", error)
            self._broken = True
            return {}
        if notes:
            self._notes += notes
            self._cheap.forget()
            self._camera.forget()
        return tensors


@atexit.register
def _close_all() -> None:
    for monitor in list(_OPEN):
        monitor.close(_LAST)


def _taken(value: Any, events: list[Any]) -> Any:
    """A number, or a tensor of one entry on its way to the CPU."""
    if hasattr(value, "detach"):
        from tailwise.training.cheap import to_host

        return to_host(value, events)
    return value
