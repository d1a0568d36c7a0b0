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
from tailwise.compression.trying.estimate import estimated_losses
from tailwise.compression.trying.material import Objective, RowScores
from tailwise.compression.trying.sensitivity import Variant, variant_losses
from tailwise.compression.trying.stage import Stage
from tailwise.compression.trying.trial_tasks import EngineTrials, TrialSettings
from tailwise.core.freed import give_back
from tailwise.models.evaluation.intervals import mean_interval

Say = Callable[[str, float], None]  # what is done, fraction of the time

#: Plans that are scored anew on text that the search has not seen, beside the two that always are.
_FINALISTS = 2


@dataclass
class Scored:
    """A plan, and what it loses."""

    name: str
    settings: Mapping[str, Any]
    plan: Plan
    search: NDArray[np.float64]  # objective of every window that the search looks at
    last: RowScores | None = None  # of the windows kept from it
    objective: Objective = "loss"
    tried: int = field(default=1)

    @property
    def loss(self) -> float:
        """The objective on the windows of the search; +inf where the model broke."""
        return _finite(self.search)

    @property
    def guard(self) -> NDArray[np.float64] | None:
        """The objective of every window of the last choice, (n,)."""
        if self.last is None or self.objective == "loss":
            return None if self.last is None else self.last.losses
        return self.last.divergences

    @property
    def judged(self) -> float:
        """The objective on the windows of the last choice."""
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
    expected: float = 0.0  # seconds that what is always tried takes, where the budget is shorter
    waiting: int = 0  # plans that are yet to be judged, while they are
    engine: EngineTrials | None = None  # where plans that do not wait for one another are tried side by side

    @property
    def objective(self) -> Objective:
        """What is made small."""
        return self.stage.trial.material.objective

    def opened(self, name: str, plan: Plan) -> Scored:
        """Try the first plan, and time it."""
        began = self.clock.spent
        scored = self.tried(name, {}, plan)
        self.pace = self.clock.spent - began
        return scored

    def score(self, plan: Plan) -> NDArray[np.float64]:
        """The objective on the windows of the search, (n,)."""
        return self.stage.trial.losses(plan, self.stage.search)

    def mean(self, plan: Plan) -> float:
        """Its mean; +inf where the model broke."""
        return _finite(self.score(plan))

    def tried(self, name: str, settings: Mapping[str, Any], plan: Plan) -> Scored:
        """Score a plan on the windows of the search."""
        return self._scored((name, settings, plan), self.score(plan))

    def _scored(self, way: tuple[str, Mapping[str, Any], Plan], found: NDArray[np.float64]) -> Scored:
        name, settings, plan = way
        shown = {key: value for key, value in settings.items() if key not in MEASURED}
        scored = Scored(name, shown, plan, found, objective=self.objective)
        self.tell(f"{name}: {self.in_words(scored.loss)}")
        return scored

    def in_words(self, loss: float) -> str:
        """A value of the objective as people know it."""
        return f"KL {loss:.4g}" if self.objective == "kl" else f"perplexity {perplexity(loss):.4g}"

    def tried_all(self, ways: Sequence[tuple[str, Mapping[str, Any], Plan]]) -> list[Scored]:
        """As `tried`, side by side where there is an engine."""
        if self.engine is None or not ways:
            return [self.tried(*way) for way in ways]
        plans = [plan for _, _, plan in ways]
        losses = self.engine.of_plans(plans, "search")
        self.stage.trial.runs += len(ways)
        return [self._scored(way, own) for way, own in zip(ways, losses, strict=True)]

    def estimated(self, around: Plan, variants: Sequence[Variant]) -> dict[Hashable, float]:
        """What each variant would change, by one gradient on the windows of the search; see `estimated_losses`."""

        def told(done: int, total: int) -> None:
            self.tell(f"estimating by gradient, {done} of {total}")

        found = estimated_losses(
            self.stage.trial, around, self.stage.search, variants, ends=lambda: self.clock.left < 0, progress=told
        )
        self.stage.trial.runs += 4
        return found

    def variant_losses(
        self,
        around: Plan,
        windows: torch.Tensor,
        variants: Sequence[Variant],
        progress: Callable[[int, int], None] | None = None,
    ) -> dict[Hashable, float]:
        """As the function of this name, on the engine where there is one; `windows` are those of the search."""
        if self.engine is None:
            return variant_losses(self.stage.trial, around, windows, variants, progress=progress)
        self.stage.trial.runs += len(variants)
        return self.engine.variant_losses(TrialSettings(around, "search"), variants, progress)

    def judge(self, finalists: Iterable[Scored]) -> None:
        """Carry out each plan as `apply` would, and score it on the windows that were kept from the search.

        The most promising comes first; where the clock is stopped, it alone.
        """
        stage = self.stage
        waiting = sorted((item for item in finalists if item.last is None), key=lambda item: item.loss)
        if self.engine is not None and len(waiting) > 1:
            began = self.clock.spent
            scores = self.engine.judged([item.plan for item in waiting])
            stage.trial.runs += len(waiting)
            for item, own in zip(waiting, scores, strict=True):
                item.last = own
            self.judging = max(self.judging, (self.clock.spent - began) / len(waiting))
            return
        for place, item in enumerate(waiting):
            if place and self.clock.stopped:
                return
            began, self.waiting = self.clock.spent, len(waiting) - place
            self.tell(f"judging {item.name}, {place + 1} of {len(waiting)}")
            item.last = stage.trial.applied_scores(item.plan, stage.judged_on, stage.guard)
            self.judging, self.waiting = max(self.judging, self.clock.spent - began), 0
            give_back()

    @property
    def finalists(self) -> int:
        """How many of the known ways, beside uniform and depth, can be judged in a third of the time."""
        return max(1, min(_FINALISTS, int(self.clock.seconds / 3 / max(self.judging, 1e-9)) - 3))

    @property
    def last_word(self) -> float:
        """Seconds that judging takes: depth, the best known ways, and what the search found; uniform is judged."""
        return self.judging * (self.finalists + 2)

    @property
    def over(self) -> bool:
        """Whether what is left of the time is for judging; another trial would not end in time."""
        return self.clock.left < self.last_word + self.pace

    def tell(self, what: str) -> None:
        """Say how far the search is; past its budget, how much of what it takes is done."""
        spent, owed = self.clock.spent, self.waiting * self.judging
        self.say(what, min(spent / max(self.clock.seconds, self.expected, spent + owed, 1e-9), 1.0))


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
    searched = "search_kl" if item.objective == "kl" else "search_loss"
    row: dict[str, Any] = {"allocator": item.name, **item.settings, searched: _number(item.loss)}
    if item.last is not None:
        row["guard_loss"] = _number(_finite(item.last.losses))
        if item.last.divergences is not None:
            row["guard_kl"] = _number(_finite(item.last.divergences))
    if item.last is not None and uniform.last is not None and item is not uniform:
        row["against_uniform"] = _number(_finite(item.last.losses - uniform.last.losses))
        if (found := mean_interval(item.last.losses - uniform.last.losses)) is not None:
            row |= {"low": _number(found[0]), "high": _number(found[1])}
    return row | {"trials": item.tried, "kept": item is chosen}


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def verdict(chosen: Scored, uniform: Scored, unit: str = "a token") -> str:
    """What was gained against uniform on windows that the search had not seen."""
    if chosen.last is None or uniform.last is None:
        raise AssertionError("judged before it is told")
    if chosen is uniform:
        return "nothing that was tried lost less than uniform on text or images that the search had not seen"
    changes = chosen.last.losses - uniform.last.losses
    change, interval = float(changes.mean()), mean_interval(changes)
    than = f"loses {abs(change):.4f} nats {unit} {'more' if change > 0 else 'less'} than uniform"
    where = "found by search" if chosen.name == "search" else chosen.name
    if interval is None:
        return f"{where} {than}, on too few windows for an interval"
    low, high = interval
    clear = "" if high < 0 else ", which may be chance"
    return f"{where} {than} [{low:+.4f}, {high:+.4f}]{clear}"


def _of_budget(clock: Clock) -> str:
    if clock.spent <= 1.05 * clock.seconds:
        return f" of {clock.seconds:.0f}"
    return f" (more than the budget of {clock.seconds:g}: what is always tried takes that long)"


def trials_in_words(scorer: PlanScorer) -> str:
    """How much was tried, on what."""
    stage = scorer.stage
    how = ", products in bf16" if stage.trial.passes is torch.bfloat16 else ""
    what = "KL to the dense model" if scorer.objective == "kl" else "the loss"
    return (
        f"{stage.trial.runs} passes in {scorer.clock.spent:.0f} s{_of_budget(scorer.clock)}{how}, {what} on "
        f"{stage.trial.material.words(stage.search)}; the last choice on {len(stage.guard)} others"
    )
