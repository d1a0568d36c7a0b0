"""`plan_blend()`: weights of several indicators, searched on calibration text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.blend import INDICATORS
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.scored import PlanScorer, Scored, rows_of, trials_in_words, verdict

#: Steps of a weight that are tried, in turn, and shares of τ.
_STEPS = (0.5, -0.5, 0.25, -0.25)
_TAUS = (0.1, 0.2, 0.3)
#: Share of the time after which the search ends; judging takes the rest.
_END = 0.7

Weights = Mapping[str, float]


@dataclass
class _Blend:
    audit: Audit
    request: Request
    scorer: PlanScorer
    tried: list[Scored]

    def scored(self, weights: Weights, tau: float) -> Scored:
        settings = {"weights": dict(weights), "tau": tau, "statistics": self.scorer.stage.scores.outlier_ratios}
        plan = plan_prune(self.audit, replace(self.request, allocator="blend", settings=settings))
        outcome = self.scorer.tried("blend", settings, plan)
        self.tried.append(outcome)
        return outcome

    @property
    def over(self) -> bool:
        return self.scorer.clock.share > _END

    def alone(self, tau: float) -> list[tuple[Weights, Scored]]:
        """Each indicator by itself, both ways round."""
        ways: list[tuple[Weights, Scored]] = []
        for name in INDICATORS:
            for sign in (1.0, -1.0):
                if ways and self.over:
                    return ways
                ways.append(({name: sign}, self.scored({name: sign}, tau)))
        return ways

    def climbed(self, weights: Weights, best: Scored, tau: float) -> tuple[Weights, Scored]:
        """Weights changed one at a time for as long as it helps and there is time."""
        better = True
        while better and not self.over:
            better = False
            for name in INDICATORS:
                for step in _STEPS:
                    if self.over:
                        return weights, best
                    moved = {**weights, name: round(weights.get(name, 0.0) + step, 4)}
                    moved = {key: value for key, value in moved.items() if value}
                    if not moved:
                        continue
                    scored = self.scored(moved, tau)
                    if scored.loss < best.loss:
                        weights, best, better = moved, scored, True
                        break
        return weights, best


def plan_blend(audit: Audit, request: Request, scorer: PlanScorer) -> Plan:
    """The blend whose plan loses least on the text of the search; its gain is told on text that was kept from it.

    First every indicator alone, both ways; then weights are added and changed one at a time, and at last the width τ.
    It is kept whether or not it is ahead of uniform: who wants whatever is best asks for `auto`.
    """
    uniform = scorer.opened("uniform", plan_prune(audit, replace(request, allocator="uniform", settings={})))
    given = request.settings.get("tau")
    tau = _TAUS[1] if given is None else float(given)
    search = _Blend(audit, request, scorer, [uniform])
    weights, best = min(search.alone(tau), key=lambda item: item[1].loss)
    weights, best = search.climbed(weights, best, tau)
    for other in _TAUS if given is None else ():
        if other != tau and not search.over:
            best = min(best, search.scored(weights, other), key=lambda item: item.loss)
    scorer.judge([uniform, best])
    scorer.stage.trial.restore()
    notes = (
        *best.plan.notes,
        verdict(best, uniform, scorer.stage.trial.material.unit),
        trials_in_words(scorer),
        *scorer.stage.notes,
    )
    return best.plan.replace(tried=rows_of(search.tried, best), notes=tuple(dict.fromkeys(notes)))
