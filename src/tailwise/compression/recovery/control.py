"""The control of a recovery: the dense model trained as long on the same windows, to tell adaptation from recovery.

A short training makes any model better on its kind of text. What the dense model gains in the same training is
adaptation; only the rest brings the pruned model nearer to it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import nn

from tailwise.compression.recovery.train_loop import FOLLOWED, Course, Trainer, Training
from tailwise.core.errors import UsageError
from tailwise.models.evaluation.intervals import Values, ratio_interval
from tailwise.models.evaluation.score_pairs import compare_scores, paired
from tailwise.models.evaluation.scores import Interval, ScoreChange, ScoreComparison, Scores


@dataclass(frozen=True)
class Control:
    """The dense model beside the recovered one, over the same held-out windows (or images), pair by pair."""

    model: str
    comparison: ScoreComparison  # the dense model trained as long, against itself before
    training: Training
    gap_before: ScoreChange  # what pruning costs: the pruned model against the dense one, nats
    gap_after: ScoreChange  # the same when both are trained
    recovered: ScoreChange  # from the one gap to the other
    adaptation: float | None  # share of what the pruned model gained that the dense one gains too
    adaptation_interval: Interval | None  # 95 %; None also where the gain is not told from 0

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        changes = {name: asdict(getattr(self, name)) for name in ("gap_before", "gap_after", "recovered")}
        return {
            "model": self.model,
            "adaptation": self.adaptation,
            "adaptation_interval": self.adaptation_interval,
            **changes,
            "comparison": self.comparison.to_json(),
            "training": self.training.to_json(),
        }

    def notes(self) -> tuple[str, ...]:
        """Where it was not trained as long."""
        training = self.training
        if training.ended == FOLLOWED:
            return ()
        return (f"the control was trained for {training.steps} steps alone ({training.ended}): adaptation may be more",)

    def words(self) -> tuple[str, ...]:
        """What the control says, in two sentences."""
        moved = self.recovered
        before, after, change = self.gap_before.change, self.gap_after.change, moved.change
        if before is None or after is None or change is None or self.adaptation is None:
            return ("what is adaptation to the text is not told: a loss is not finite",)
        around = self.adaptation_interval
        said = "" if around is None else f" [{100 * around[0]:.0f}, {100 * around[1]:.0f}]"
        within = "" if moved.interval is None else " [{:+.4f}, {:+.4f}]".format(*moved.interval)
        return (
            f"of what it gained, {100 * self.adaptation:.0f} %{said} is adaptation to the text, which the dense model "
            "gains in the same training",
            f"what pruning costs went from {before:+.4f} to {after:+.4f} nats ({change:+.4f}{within}: {moved.verdict})",
        )


@dataclass(frozen=True)
class ControlRun:
    """How the dense model is opened, trained and scored, and what it scored before."""

    name: str
    open: Callable[[], nn.Module]
    trainer: Callable[[nn.Module], Trainer]
    scores: Callable[[nn.Module, str], Scores]
    before: Scores

    def beside(self, led: Training, course: Course, found: ScoreComparison, until: float) -> Control:
        """Train it as `led` was trained, and hold it beside `found`, the recovered model against the pruned one."""
        model = self.open()
        trainer = self.trainer(model)
        training = trainer.follow(course, led, until)
        after = self.scores(trainer.model, self.name)
        return held_against(found, compare_scores(after, self.before, seed=course.seed), training, course.seed)


def held_against(found: ScoreComparison, control: ScoreComparison, training: Training, seed: int = 0) -> Control:
    """What is adaptation and what recovery, of the pruned model's training and that of its control."""
    pruned, recovered = losses_in(found.base), losses_in(found.model)
    dense, adapted = losses_in(control.base), losses_in(control.model)
    name = "loss"

    def change(before: Values, after: Values) -> ScoreChange:
        if not (np.isfinite(before).all() and np.isfinite(after).all()):
            return ScoreChange(name, None, None, None, None, None, len(before), "not measured")
        return paired(name, before, after, seed, higher_is_better=False)

    gained, adapted_by = pruned - recovered, dense - adapted
    mean = float(gained.mean())
    told = np.isfinite(gained).all() and np.isfinite(adapted_by).all() and mean != 0
    return Control(
        control.model.model,
        control,
        training,
        change(dense, pruned),
        change(adapted, recovered),
        change(pruned - dense, recovered - adapted),
        float(adapted_by.mean()) / mean if told else None,
        ratio_interval(adapted_by, gained) if told else None,
    )


def losses_in(scores: Scores) -> Values:
    """(n,) losses of the windows, or of a classifier's images; NaN where one is not finite."""
    tasks: Mapping[str, tuple[float, ...]] = {task.metric: task.samples for task in scores.tasks}
    found = scores.losses or tasks.get("loss", ())
    if not found:
        raise UsageError("has no losses to hold against the control's", where=scores.model)
    return np.array([np.nan if loss is None else loss for loss in found], dtype=float)
