"""`auto()`: ways to spend a budget are tried on the model, and the plan that loses least on text is kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from tailwise.compression.operators.registered import direction_in_words
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.scored import (
    PlanScorer,
    Scored,
    best_of_each,
    perplexity,
    rows_of,
    trials_in_words,
    verdict,
)


class Search(ABC):
    """What is tried, of amounts or of formats."""

    def __init__(self, scorer: PlanScorer) -> None:
        self.scorer, self.stage, self.clock = scorer, scorer.stage, scorer.clock

    @abstractmethod
    def candidates(self) -> list[Scored]:
        """Every known way that needs no sweep, uniform first: it is tried whatever the time."""

    @abstractmethod
    def from_sensitivity(self, uniform: Scored) -> list[Scored]:
        """The plan by measured losses, where a sweep fits into the time; else nothing."""

    @abstractmethod
    def refine(self, best: Scored) -> Scored:
        """A plan changed by trial for the time that is left but for the last scores; itself where none can be."""

    @abstractmethod
    def told(self, best: Scored) -> Plan:
        """The plan that is kept, with its budget, settings, and reasons where the search found it."""

    @abstractmethod
    def notes(self, best: Scored) -> tuple[str, Sequence[str]]:
        """How it follows depth, and what was left out."""

    def moved(self, loss: float, tried: int) -> None:
        """Say how far the refinement is."""
        self.scorer.tell(f"search: perplexity {perplexity(loss):.4g} after {tried} moves")


def auto(search: Search) -> Plan:
    """The plan that loses least on calibration text, with a table of all that were tried.

    Every known way comes first, then measured sensitivity where a sweep fits into the time; the best of them is
    refined by trial until the scorer's clock runs out. The best few are scored once more on windows that no step has
    seen, uniform among them, and the one with the least loss there is kept: what the search made up for its own
    windows does not pass.
    """
    scorer = search.scorer
    candidates = search.candidates()
    scorer.judge(candidates[:1])
    candidates += search.from_sensitivity(candidates[0])
    best = min(candidates, key=lambda item: item.loss)
    finalists = [candidates[0], *best_of_each(candidates[1:], scorer.finalists)]
    refined = search.refine(best)
    finalists += [refined] if refined.plan is not best.plan else []
    scorer.judge(finalists)
    chosen = min(finalists, key=lambda item: item.judged)
    scorer.stage.trial.restore()
    return _final(search, chosen, [*candidates, *(item for item in finalists if item not in candidates)])


def _final(search: Search, chosen: Scored, everything: list[Scored]) -> Plan:
    plan, scorer = search.told(chosen), search.scorer
    depth, left = search.notes(chosen)
    notes = [
        f"sign: {direction_in_words(plan.operator)}; here all candidates were tested on your text",
        depth,
        verdict(chosen, everything[0], scorer.stage.trial.material.unit),
        trials_in_words(scorer),
        *left,
        *scorer.stage.notes,
    ]
    settings: dict[str, Any] = {"kept": chosen.name, **plan.settings, "seed": scorer.stage.seed}
    tried = rows_of(everything, chosen)
    return plan.replace(allocator="auto", settings=settings, tried=tried, notes=tuple(dict.fromkeys(notes)))
