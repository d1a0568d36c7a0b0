"""Plans that are tried by workers: each sets the same stage up once, and sends the losses of the plans it is given.

A worker reads the model and the text itself. What travels is a plan, the entries in which each trial differs from it,
and the losses that come back.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tailwise.checkpoints.by_address import from_anywhere
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.material import RowScores
from tailwise.compression.trying.sensitivity import Variant
from tailwise.compression.trying.stage import Stage, StageOptions, stage_of
from tailwise.core.errors import UnreadableError
from tailwise.core.execution.engine import Engine
from tailwise.core.execution.executor import engine_of, one_thread
from tailwise.core.execution.spread import SpreadWork, patience_of, spread
from tailwise.core.recipe import RunOptions

Windows = Literal["search", "guard"]  # of a `Stage`
Entries = Mapping[int, Decision]  # place in the plan → the entry instead
#: Trials in one task at most: neighbours often differ from the same block on, and a worker keeps what comes before.
_MOST = 8


@dataclass(frozen=True)
class TrialSettings:
    """What the trials of a task have in common."""

    around: Plan
    windows: Windows
    applied: bool = False  # carried out whole, as `applied_losses` does


@dataclass(frozen=True)
class TrialTask:
    """A few trials for a worker."""

    setting: bytes  # pickled (model, plan, options) of `stage_of`
    how: TrialSettings
    trials: tuple[Entries, ...]


class EngineTrials:
    """Losses of plans, measured on an engine."""

    def __init__(self, engine: Engine, setting: bytes, options: RunOptions) -> None:
        self._engine, self._setting, self._options = engine, setting, options

    @property
    def slots(self) -> int:
        """Trials at once."""
        return max(1, self._engine.slots())

    def losses(
        self, how: TrialSettings, trials: Sequence[Entries], progress: Callable[[int, int], None] | None = None
    ) -> list[NDArray[np.float64]]:
        """Of each trial the objective of every window, (n,). `UnreadableError` where one could not be had."""
        return self._told(how, trials, progress)

    def _told(
        self, how: TrialSettings, trials: Sequence[Entries], progress: Callable[[int, int], None] | None = None
    ) -> list[Any]:
        by_place: dict[int, Any] = {}

        def pack(places: Sequence[int]) -> tuple[tuple[int, ...], TrialTask]:
            return tuple(places), TrialTask(self._setting, how, tuple(trials[place] for place in places))

        work = SpreadWork(_run, pack, _given_up, most=_MOST)
        for place, losses in spread(self._engine, work, range(len(trials)), patience_of(self._options)):
            if isinstance(losses, str):
                fix = "try again, or leave --executor out"
                raise UnreadableError(f"a plan could not be tried: {losses}", where=how.around.model, fix=fix)
            by_place[place] = losses
            if progress is not None:
                progress(len(by_place), len(trials))
        return [by_place[place] for place in range(len(trials))]

    def of_plans(self, plans: Sequence[Plan], windows: Windows) -> list[NDArray[np.float64]]:
        """Losses of plans for the same tensors in the same order."""
        return self.losses(TrialSettings(plans[0], windows), [dict(enumerate(plan.decisions)) for plan in plans])

    def judged(self, plans: Sequence[Plan]) -> list[RowScores]:
        """As of `applied_scores`, on the windows of the last choice."""
        how = TrialSettings(plans[0], "guard", applied=True)
        return self._told(how, [dict(enumerate(plan.decisions)) for plan in plans])

    def variant_losses(
        self, how: TrialSettings, variants: Sequence[Variant], progress: Callable[[int, int], None] | None = None
    ) -> dict[Hashable, float]:
        """Key of each variant → change of the mean loss against `how.around`."""
        base, *changed = self.losses(how, [{}, *(variant.entries for variant in variants)], progress)
        changes = [float(losses.mean()) - float(base.mean()) for losses in changed]
        return {variant.key: change for variant, change in zip(variants, changes, strict=True)}


@contextmanager
def trials_on_engine(model: str, plan: Plan, text: StageOptions) -> Iterator[EngineTrials | None]:
    """The engine that the options name, for trials of plans of the same tensors; None where it is this process."""
    if text.executor == "local":
        yield None
        return
    options = RunOptions(executor=text.executor, workers=text.workers, patience=text.patience, device=text.device)
    here = replace(text, executor="local", calibration=_from_anywhere(text.calibration))
    with engine_of(options) as engine:
        yield EngineTrials(engine, pickle.dumps((from_anywhere(model), plan, here)), options)


def _from_anywhere(calibration: Any) -> Any:
    if isinstance(calibration, str | Path):
        return from_anywhere(str(calibration))
    if isinstance(calibration, list | tuple):
        return [_from_anywhere(item) for item in calibration]
    return calibration


def _given_up(place: int, why: str) -> tuple[int, str]:
    return place, why


def _run(packed: tuple[tuple[int, ...], TrialTask]) -> list[tuple[int, NDArray[np.float64] | RowScores | str]]:
    """On a worker."""
    places, task = packed
    with one_thread():
        stage = _stage(task)
        return [(place, _losses(stage, task.how, trial)) for place, trial in zip(places, task.trials, strict=True)]


def _losses(stage: Stage, how: TrialSettings, entries: Entries) -> NDArray[np.float64] | RowScores:
    windows = getattr(stage, how.windows)
    plan = how.around.replace(decisions=tuple(entries.get(i, item) for i, item in enumerate(how.around)))
    if how.applied:
        return stage.trial.applied_scores(plan, stage.judged_on, windows)
    return stage.trial.losses(plan, windows)


#: The stage of this process, what it was made of, and what it is settled on.
_HELD: dict[str, Any] = {}


def _stage(task: TrialTask) -> Stage:
    key = hashlib.sha256(task.setting).digest()
    if _HELD.get("key") != key:
        _HELD.clear()
        _HELD.update(key=key, stage=stage_of(*pickle.loads(task.setting)))  # noqa: S301 - made by who sent it
    stage: Stage = _HELD["stage"]
    settled = hashlib.sha256(pickle.dumps(task.how)).digest()
    if not task.how.applied and _HELD.get("settled") != settled:
        stage.trial.settle(task.how.around, getattr(stage, task.how.windows))
        _HELD["settled"] = settled
    return stage
