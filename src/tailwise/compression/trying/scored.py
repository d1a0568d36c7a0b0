"""Plans that were tried: their losses, the last choice among them, and the table of it all."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise.compression.choosing.chooser import MEASURED
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.clock import Clock
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import Stage
from tailwise.compression.trying.trial_tasks import EngineTrials, TrialSettings, Windows
from tailwise.models.evaluation.intervals import mean_interval

Say = Callable[[str, float], None]  # what is done, fraction of the time

#: Nats a token by which a trial may miss what applying the plan gives; a heuristic.
FAITHFUL = 0.03
#: Share of the time that single tensors may be measured for.
SWEEP = 0.5
#: What a change in one block costs beside a whole trial, on the mean: the blocks before it are not run.
_PART = 0.6
#: Plans that are scored anew on text that the search has not seen, at most.
_FINALISTS = 4


@dataclass
class Scored:
    """A plan, and what it loses."""

    name: str
    settings: Mapping[str, Any]
    plan: Plan
    search: NDArray[np.float64]  # loss of every window that the search looks at
    guard: NDArray[np.float64] | None = None  # of those kept from it
    notes: str = ""
    tried: int = field(default=1)

    @property
    def loss(self) -> float:
        """On the windows of the search; +inf where the model broke."""
        return _finite(self.search)

    @property
    def judged(self) -> float:
        """On the windows of the last choice."""
        if self.guard is None:
            raise AssertionError("scored before it is judged")
        return _finite(self.guard)


def _finite(losses: NDArray[np.float64]) -> float:
    loss = float(losses.mean())
    return loss if math.isfinite(loss) else math.inf


@dataclass
class PlanScorer:
    """Where plans are tried and judged within a time."""

    stage: Stage
    clock: Clock
    say: Say = field(default=lambda _what, _done: None)
    judging: float = 0.0  # seconds that the dearest judgement took
    pace: float = 0.0  # seconds that a trial took
    faithful: bool = True  # whether trials come near to what applying a plan gives
    engine: EngineTrials | None = None  # where plans that do not wait for one another are tried side by side

    def opened(self, name: str, plan: Plan) -> Scored:
        """Try the first plan both ways; from here on plans are carried out whole where that makes a difference.

        In a trial the layers see the inputs of the dense model. Where much is taken away, they see others.
        """
        began = self.clock.spent
        scored = self.tried(name, {}, plan)
        self.pace = self.clock.spent - began
        if self.stage.trial.how.looks:
            applied = self.stage.trial.applied_losses(plan, self.stage.looked, self.stage.search)
            self.faithful = abs(_finite(applied) - scored.loss) < FAITHFUL
            scored.search = scored.search if self.faithful else applied
        return scored

    def score(self, plan: Plan) -> NDArray[np.float64]:
        """Losses on the windows of the search, (n,)."""
        trial, stage = self.stage.trial, self.stage
        if self.faithful:
            return trial.losses(plan, stage.search)
        return trial.applied_losses(plan, stage.looked, stage.search)

    def tried(self, name: str, settings: Mapping[str, Any], plan: Plan) -> Scored:
        """Score a plan on the windows of the search."""
        shown = {key: value for key, value in settings.items() if key not in MEASURED}
        scored = Scored(name, shown, plan, self.score(plan))
        self.tell(f"{name}: perplexity {perplexity(scored.loss):.4g}")
        return scored

    def tried_all(self, ways: Sequence[tuple[str, Mapping[str, Any], Plan]]) -> list[Scored]:
        """As `tried`, side by side where there is an engine."""
        if self.engine is None or not ways:
            return [self.tried(*way) for way in ways]
        plans = [plan for _, _, plan in ways]
        losses = self.engine.of_plans(plans, "search", applied=not self.faithful)
        self.stage.trial.runs += len(ways)
        scored = []
        for (name, settings, plan), own in zip(ways, losses, strict=True):
            shown = {key: value for key, value in settings.items() if key not in MEASURED}
            scored.append(Scored(name, shown, plan, own))
            self.tell(f"{name}: perplexity {perplexity(scored[-1].loss):.4g}")
        return scored

    def variant_losses(
        self,
        around: Plan,
        windows: torch.Tensor,
        variants: Sequence[Variant],
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[Hashable, float]:
        """As the function of this name, on the engine where there is one; `windows` are of the stage."""
        if self.engine is None:
            return variant_losses(self.stage.trial, around, windows, variants, progress=progress)
        self.stage.trial.runs += len(variants)
        name: Windows = "few" if windows is self.stage.few else "search"
        return self.engine.variant_losses(TrialSettings(around, name), variants, progress)

    def for_sweep(self, trials: int) -> torch.Tensor | None:
        """Windows on which so many changes of one block can be measured in `SWEEP` of the time; None where on none."""
        time = min(SWEEP * self.clock.seconds, self.clock.left - 2 * self.judging)
        each = self.pace * _PART / len(self.stage.search) / (1 if self.engine is None else self.engine.slots)
        fitting = (few for few in (self.stage.search, self.stage.few) if trials * each * len(few) <= time)
        return next(fitting, None)

    def judge(self, finalists: Iterable[Scored]) -> None:
        """Carry out each plan as `apply` would, and score it on the windows that were kept from the search."""
        waiting = [item for item in finalists if item.guard is None]
        if self.engine is not None and len(waiting) > 1:
            began = self.clock.spent
            losses = self.engine.of_plans([item.plan for item in waiting], "guard", applied=True)
            self.stage.trial.runs += len(waiting)
            for item, own in zip(waiting, losses, strict=True):
                item.guard = own
            self.judging = max(self.judging, (self.clock.spent - began) / len(waiting))
            return
        for item in waiting:
            began = self.clock.spent
            item.guard = self.stage.trial.applied_losses(item.plan, self.stage.looked, self.stage.guard)
            self.judging = max(self.judging, self.clock.spent - began)
            self.tell(f"{item.name}: judged")

    @property
    def finalists(self) -> int:
        """How many of the known ways can be judged in a third of the time."""
        return max(1, min(_FINALISTS, int(self.clock.seconds / 3 / max(self.judging, 1e-9)) - 1))

    @property
    def last_word(self) -> float:
        """Seconds that judging them and what the search found takes."""
        return self.judging * (self.finalists + 1)

    def tell(self, what: str) -> None:
        """Say how far the search is."""
        self.say(what, self.clock.share)


def perplexity(loss: float) -> float:
    """exp(loss), of a loss that may be huge."""
    return math.exp(min(loss, 50.0))


def best_of_each(items: Sequence[Scored], count: int) -> list[Scored]:
    """Up to `count` plans, the best of each name, by the losses of the search."""
    ranked = sorted(items, key=lambda item: item.loss)
    names = [item.name for item in ranked]
    return [item for place, item in enumerate(ranked) if item.name not in names[:place]][:count]


def rows_of(everything: Sequence[Scored], chosen: Scored) -> tuple[dict[str, Any], ...]:
    """The table of all that was tried; the first is uniform."""
    return tuple(_row(item, everything[0], chosen) for item in everything)


def _row(item: Scored, uniform: Scored, chosen: Scored) -> dict[str, Any]:
    row: dict[str, Any] = {"allocator": item.name, **item.settings, "search_loss": round(item.loss, 6)}
    if not math.isfinite(item.loss):
        row["search_loss"] = None
    if item.guard is not None:
        row["guard_loss"] = round(item.judged, 6) if math.isfinite(item.judged) else None
    if item.guard is not None and uniform.guard is not None and item is not uniform:
        row["against_uniform"] = round(float((item.guard - uniform.guard).mean()), 6)
        if (interval := mean_interval(item.guard - uniform.guard)) is not None:
            row |= {"low": round(interval[0], 6), "high": round(interval[1], 6)}
    return row | {"trials": item.tried, "kept": item is chosen}


def verdict(chosen: Scored, uniform: Scored, unit: str = "a token") -> str:
    """What was gained against uniform on windows that the search had not seen."""
    if chosen.guard is None or uniform.guard is None:
        raise AssertionError("judged before it is told")
    if chosen is uniform:
        return "nothing that was tried lost less than uniform on text or images that the search had not seen"
    change, interval = float((chosen.guard - uniform.guard).mean()), mean_interval(chosen.guard - uniform.guard)
    where = "found by search" if chosen.name == "search" else chosen.name
    if interval is None:
        return f"{where}: {change:+.4f} nats {unit} against uniform, on too few windows for an interval"
    low, high = interval
    clear = "" if high < 0 else ", which may be chance"
    return f"{where}: {change:+.4f} nats {unit} against uniform [{low:+.4f}, {high:+.4f}]{clear}"


def trials_in_words(scorer: PlanScorer) -> str:
    """How much was tried, on what."""
    stage = scorer.stage
    how = "" if scorer.faithful else ", carried out whole since inputs change much"
    return (
        f"{stage.trial.runs} trials in {scorer.clock.spent:.0f} s{how}, on {stage.trial.material.words(stage.search)}"
        f"; the last choice on {len(stage.guard)} others"
    )
