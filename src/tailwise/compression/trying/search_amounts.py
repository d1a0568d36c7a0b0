"""Plans of amounts that are tried: by one way that is measured on text, or by all of them."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from typing_extensions import override

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.patterns import UNSTRUCTURED
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.rank_correlation import depth_correlation
from tailwise.compression.trying.auto import Search, Way, auto
from tailwise.compression.trying.blend_search import plan_blend
from tailwise.compression.trying.descend import descended
from tailwise.compression.trying.refine import Best, refined
from tailwise.compression.trying.scored import PlanScorer, Scored
from tailwise.compression.trying.sensitivity import Variant, levels_of, measured_losses
from tailwise.compression.trying.stage import Stage
from tailwise.models.walking.reconstruction import reconstruction_errors

#: Shares of α that are tried, the published one first, and steps of depth, as a fraction of what the budget allows.
_TAUS = (0.3, 0.1, 0.2, 0.05, 0.4, 0.5)
_BETAS = (0.25, 0.375, 0.125, -0.25, -0.125)
_MAPPINGS = ("block", "matrix", "mixed")
#: Changes of sparsity whose loss is estimated around uniform: near enough for a gradient.
_STEPS = (-0.1, -0.05, 0.05, 0.1)


@dataclass(frozen=True)
class Amounts:
    """A pruning plan to be made."""

    audit: Audit
    request: Request
    #: What allocators take from text, by name.
    from_text = ("owl", "dlp", "lsa", "sensitivity", "blend")
    by_perplexity = False
    untried = (
        "no calibration text was given, so nothing could be tried and the budget is spread evenly; "
        "with --calibration TEXT, candidates are scored and the best is kept"
    )

    def plan(self, allocator: str) -> Plan:
        """By an allocator, from the audit alone."""
        return plan_prune(self.audit, replace(self.request, allocator=allocator))

    def by(self, allocator: str, settings: Mapping[str, Any]) -> Plan:
        """By an allocator that is told this alone."""
        return plan_prune(self.audit, replace(self.request, allocator=allocator, settings=settings))

    def around(self) -> Plan:
        """A plan of the same tensors that needs no text."""
        return self.by("uniform", {})

    def reads(self, allocator: str) -> bool:
        """Whether the plan takes text where there is some."""
        return allocator in self.from_text

    def check_without_text(self, allocator: str) -> None:
        """Each allocator says itself what it lacks."""

    def auto(self, scorer: PlanScorer) -> Plan:
        """By whatever loses least."""
        return auto(AmountSearch(self, scorer))

    def measured(self, scorer: PlanScorer, allocator: str) -> Plan:
        """By what a pass over the text says, or many."""
        if allocator == "blend" and "weights" not in self.request.settings:
            return plan_blend(self.audit, self.request, scorer)
        stage = scorer.stage
        known = {"owl": stage.scores.outlier_ratios, "blend": stage.scores.outlier_ratios, "dlp": stage.scores.medians}
        settings: dict[str, Any] = {"statistics": known[allocator]} if allocator in known else {}
        if allocator == "lsa":
            settings = {"statistics": reconstructed(stage)}
        elif not settings:
            settings = self._losses(scorer)
        plan = self.by(allocator, {**self.request.settings, **settings})
        return plan.replace(notes=(*plan.notes, *stage.notes))

    def _losses(self, scorer: PlanScorer) -> dict[str, Any]:
        def progress(done: int, total: int) -> None:
            scorer.say(f"measuring tensor {done} of {total}", done / total)

        trial = scorer.stage.trial
        losses = measured_losses(
            trial, self.around(), scorer.stage.search, progress=progress, measure=scorer.variant_losses
        )
        trial.restore()
        return {"losses": losses}


def reconstructed(stage: Stage) -> dict[int, float]:
    """What LSA takes from the windows of a stage: block → error."""
    trial = stage.trial
    trial.restore()
    with trial.quick():
        return reconstruction_errors(trial.model, trial.material.inputs(stage.looked))


class AmountSearch(Search):
    """Uniform, depth, OWL, DLP, every mapping of α, entropy, and what was measured of single tensors."""

    def __init__(self, asked: Amounts, scorer: PlanScorer) -> None:
        super().__init__(scorer)
        self.asked, self.request = asked, asked.request
        self.uniform = asked.around()

    @property
    def can_refine(self) -> bool:
        """Whether amounts can be moved freely: a pattern or ranks would round each move away."""
        operator = OPERATORS[self.request.operator]
        return self.request.pattern == UNSTRUCTURED and operator.work is not None and not operator.ranks

    @property
    @override
    def always(self) -> tuple[Way, ...]:
        return (("depth", {}),)

    @property
    @override
    def known(self) -> int:
        return sum(1 for _ in self.ways())

    @override
    def plan_of(self, name: str, settings: Mapping[str, Any]) -> Plan | None:
        return self.asked.by(name, settings)

    @override
    def reads_alpha(self, name: str) -> bool:
        return name in ALLOCATORS and ALLOCATORS[name].needs_alpha

    @override
    def ways(self) -> Iterator[Sequence[Way]]:
        given = self.request.settings
        scores = self.stage.scores
        yield [("owl", {"statistics": scores.outlier_ratios})]
        half = float(self.asked.by("depth", {}).settings["beta"])
        yield [("depth", {"beta": half * 2 * share}) for share in _BETAS]
        yield [("dlp", {"statistics": scores.medians})]
        taus = (given["tau"],) if "tau" in given else _TAUS
        turned = {"reverse": True} if given.get("reverse") else {}
        for mapping in (given["mapping"],) if "mapping" in given else _MAPPINGS:
            yield [("alpha", {"mapping": mapping, "tau": tau, **turned}) for tau in taus]
        yield [("alpha-role", {"tau": tau, **turned}) for tau in taus]
        # The manual and this project read entropy opposite ways.
        yield [("entropy", {"tau": tau, **way}) for tau in taus for way in ({}, {"reverse": True})]

    @override
    def by_gradient(self, uniform: Scored) -> Scored | None:
        if not self.can_refine:
            return None
        around = uniform.plan
        levels = levels_of(around.sparsity, (0.0, *_STEPS))
        losses = measured_losses(self.stage.trial, around, self.stage.search, levels=levels, measure=self._estimated)
        known = {item.tensor for item in around} == {tensor for tensor, level in losses if level != around.sparsity}
        if not known:  # the time was over before all were estimated
            return None
        plan = self.asked.by("sensitivity", {"losses": losses})
        return self.scorer.tried("sensitivity", {"losses": losses, "estimated": "gradient"}, plan)

    def _estimated(
        self, around: Plan, _windows: torch.Tensor, variants: Sequence[Variant], _progress: object
    ) -> dict[Hashable, float]:
        return self.scorer.estimated(around, variants)

    @override
    def refine(self, best: Scored) -> Scored:
        """Along the gradient for as long as it helps; then groups are moved at random."""
        if not self.can_refine:
            return best

        def moved(state: Best[Plan]) -> None:
            self.moved(state.loss, state.tried)

        def over() -> bool:
            return self.scorer.over

        found = Best(best.plan, best.loss)
        descended(self.scorer.mean, self.scorer.estimated, found, over=over, progress=moved)
        refined(self.scorer.mean, found, over=over, seed=self.stage.seed, progress=moved)
        origin = {"from": best.name, **best.settings}
        losses = self.scorer.score(found.state)
        return Scored("search", origin, found.state, losses, objective=self.scorer.objective, tried=found.tried)

    @override
    def told(self, best: Scored) -> Plan:
        plan = best.plan
        if best.name == "search":
            plan = plan.replace(decisions=tuple(_explained(item, plan.sparsity) for item in plan))
        budget = dict(plan.budget) | {"achieved": round(plan.sparsity, 9)} if self.can_refine else plan.budget
        return plan.replace(budget=budget, settings={**best.settings, "pattern": self.request.pattern})

    @override
    def notes(self, best: Scored) -> tuple[str, list[str]]:
        left = [note for note in best.plan.notes if note.startswith(("left", "asked"))]
        return depth_correlation(best.plan).words, left


def _explained(item: Decision, mean: float) -> Decision:
    difference = (item.sparsity or 0.0) - mean
    word = "as the budget" if abs(difference) < 5e-4 else f"{'more' if difference > 0 else 'less'} than the budget"
    return replace(item, reason=f"found by trial: {word} ({difference:+.3f})")
