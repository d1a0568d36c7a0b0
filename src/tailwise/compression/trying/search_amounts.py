"""Plans of amounts that are tried: by one way that is measured on text, or by all of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from tailwise.audits.audit import Audit
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.patterns import UNSTRUCTURED
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.rank_correlation import depth_correlation
from tailwise.compression.trying.auto import Search, auto
from tailwise.compression.trying.blend_search import plan_blend
from tailwise.compression.trying.refine import Best, refined
from tailwise.compression.trying.scored import PlanScorer, Scored
from tailwise.compression.trying.sensitivity import levels_of, measured_losses

#: Shares of α and steps of depth that are tried; β as a fraction of what the budget allows.
_TAUS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5)
_BETAS = (0.125, 0.25, 0.5, -0.125, -0.25)
_MAPPINGS = ("block", "matrix", "mixed")
#: Nats a token above uniform at which a stronger setting of the same kind is not tried any more.
_HOPELESS = 0.05
#: Plans that are tried whatever the time: uniform and two of depth.
_AT_LEAST = 3
#: Changes of sparsity that single tensors are measured at, best first.
_SWEEPS = ((-0.3, -0.15, 0.1, 0.2), (-0.15, 0.1))


@dataclass(frozen=True)
class Amounts:
    """A pruning plan to be made."""

    audit: Audit
    request: Request
    #: What allocators take from text, by name.
    from_text = ("owl", "dlp", "sensitivity", "blend")
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
        settings: dict[str, Any] = {"statistics": known[allocator]} if allocator in known else self._losses(scorer)
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


class AmountSearch(Search):
    """Uniform, depth, OWL, DLP, every mapping of α, entropy, and what was measured of single tensors."""

    def __init__(self, asked: Amounts, scorer: PlanScorer) -> None:
        super().__init__(scorer)
        self.asked, self.request = asked, asked.request

    @property
    def can_refine(self) -> bool:
        """Whether amounts can be moved freely: a pattern or ranks would round each move away."""
        operator = OPERATORS[self.request.operator]
        return self.request.pattern == UNSTRUCTURED and operator.work is not None and not operator.ranks

    @override
    def candidates(self) -> list[Scored]:
        """Uniform and depth are tried whatever the time.

        A family goes from weak to strong settings, and ends where one loses `_HOPELESS` nats more than uniform.
        """
        tried = [self.scorer.opened("uniform", self.asked.around())]
        if self.scorer.engine is not None:
            return tried + self._side_by_side(tried[0])
        for name, family in self._families():
            for settings in family:
                if len(tried) >= _AT_LEAST and self.clock.share > 0.5:
                    return tried
                tried.append(self._scored(name, settings))
                if not tried[-1].loss < tried[0].loss + _HOPELESS:
                    break
        return tried

    def _side_by_side(self, uniform: Scored) -> list[Scored]:
        """The same families, the n-th settings of all at once: those that lost too much before are out."""
        tried: list[Scored] = []
        families = list(self._families())
        while families and not (tried and self.clock.share > 0.5):
            ways = [(name, family[0], self.asked.by(name, family[0])) for name, family in families]
            scored = self.scorer.tried_all(ways)
            tried += scored
            alive = (item.loss < uniform.loss + _HOPELESS for item in scored)
            families = [(n, rest[1:]) for (n, rest), lives in zip(families, alive, strict=True) if lives and rest[1:]]
        return tried

    def _scored(self, name: str, settings: Mapping[str, Any]) -> Scored:
        return self.scorer.tried(name, settings, self.asked.by(name, settings))

    @override
    def from_sensitivity(self, uniform: Scored) -> list[Scored]:
        if not self.can_refine:
            return []
        around = uniform.plan
        sweeps = ((steps, self.scorer.for_sweep(len(steps) * len(around))) for steps in _SWEEPS)
        steps, windows = next(((steps, windows) for steps, windows in sweeps if windows is not None), ((), None))
        if windows is None:
            return []
        levels = levels_of(around.sparsity, (0.0, *steps))
        losses = measured_losses(
            self.stage.trial, around, windows, levels=levels, progress=self._swept, measure=self.scorer.variant_losses
        )
        plan = self._scored("sensitivity", {"losses": losses})
        return [replace(plan, settings={"levels": list(levels)}, tried=len(losses) - len(around))]

    def _swept(self, done: int, total: int) -> None:
        self.scorer.tell(f"measuring tensor by tensor, {done} of {total}")

    @override
    def refine(self, best: Scored) -> Scored:
        if not self.can_refine:
            return best

        def moved(state: Best[Plan]) -> None:
            self.moved(state.loss, state.tried)

        refined_plan = refined(
            lambda plan: float(self.scorer.score(plan).mean()),
            best.plan,
            over=lambda: self.clock.left < self.scorer.last_word,
            seed=self.stage.seed,
            progress=moved,
        )
        origin = {"from": best.name, **best.settings}
        losses = self.scorer.score(refined_plan.state)
        return Scored(
            "search",
            origin,
            refined_plan.state,
            losses,
            notes=f"{refined_plan.kept} moves kept",
            tried=refined_plan.tried,
        )

    def _families(self) -> Iterator[tuple[str, list[dict[str, Any]]]]:
        given = self.request.settings
        yield "depth", [{"beta": self._beta(share)} for share in _BETAS if share > 0]
        yield "depth", [{"beta": self._beta(share)} for share in _BETAS if share < 0]
        yield "owl", [{"statistics": self.stage.scores.outlier_ratios}]
        yield "dlp", [{"statistics": self.stage.scores.medians}]
        taus = (given["tau"],) if "tau" in given else _TAUS
        turned = {"reverse": True} if given.get("reverse") else {}
        for mapping in (given["mapping"],) if "mapping" in given else _MAPPINGS:
            yield "alpha", [{"mapping": mapping, "tau": tau, **turned} for tau in taus]
        yield "alpha-role", [{"tau": tau, **turned} for tau in taus]
        # The manual and this project read entropy opposite ways.
        yield "entropy", [{"tau": tau} for tau in taus]
        yield "entropy", [{"tau": tau, "reverse": True} for tau in taus]

    def _beta(self, share: float) -> float:
        return float(self.asked.by("depth", {}).settings["beta"]) * 2 * share

    @override
    def told(self, best: Scored) -> Plan:
        plan = best.plan
        if best.name == "search":
            plan = plan.replace(decisions=tuple(_explained(item, plan.sparsity) for item in plan))
        budget = dict(plan.budget) | {"reached": round(plan.sparsity, 9)} if self.can_refine else plan.budget
        return plan.replace(budget=budget, settings={**best.settings, "pattern": self.request.pattern})

    @override
    def notes(self, best: Scored) -> tuple[str, list[str]]:
        left = [note for note in best.plan.notes if note.startswith(("left", "asked"))]
        return depth_correlation(best.plan).words, left


def _explained(item: Decision, mean: float) -> Decision:
    difference = (item.sparsity or 0.0) - mean
    word = "as the budget" if abs(difference) < 5e-4 else f"{'more' if difference > 0 else 'less'} than the budget"
    return replace(item, reason=f"found by trial: {word} ({difference:+.3f})")
