"""`plan_auto()`: ways to spread sparsity are tried on the model, and the one that loses least on text is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.compression.operators.table import direction_in_words
from tailwise.compression.plans.correlation import depth_correlation
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.make import plan_prune
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.request import Request
from tailwise.planning.refine import Refined, refined
from tailwise.planning.scored import (
    Court,
    Scored,
    best_of_each,
    perplexity,
    rows_of,
    trials_in_words,
    verdict,
)
from tailwise.planning.sensitivity import levels_of, measured_losses

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


def plan_auto(audit: Audit, request: Request, court: Court) -> Plan:
    """The plan that loses least on calibration text, with a table of all that were tried.

    Uniform, depth, OWL, DLP and every mapping of α come first, then measured sensitivity where a sweep fits into
    the time; the best of them is refined by trial until the court's clock runs out. The best few are scored once
    more on windows that no step has seen, uniform among them, and the one with the least loss there is kept: what
    the search made up for its own windows does not pass.
    """
    search = _Search(audit, request, court)
    candidates = search.candidates()
    court.judge(candidates[:1])
    candidates += search.from_sensitivity()
    best = min(candidates, key=lambda item: item.loss)
    finalists = [candidates[0], *best_of_each(candidates[1:], court.finalists)]
    if search.can_refine:
        found = search.refine(best)
        finalists += [found] if found.plan is not best.plan else []
    court.judge(finalists)
    kept = min(finalists, key=lambda item: item.judged)
    court.stage.trial.restore()
    return _final(kept, [*candidates, *(item for item in finalists if item not in candidates)], search)


class _Search:
    def __init__(self, audit: Audit, request: Request, court: Court) -> None:
        self.audit, self.request, self.court = audit, request, court
        self.stage, self._clock = court.stage, court.clock

    @property
    def can_refine(self) -> bool:
        """Whether amounts can be moved freely: a pattern or ranks would round each move away."""
        return self.request.pattern == "unstructured" and self.request.operator not in ("low_rank", "structured")

    def candidates(self) -> list[Scored]:
        """Every known way, family by family; uniform and depth are tried whatever the time.

        A family goes from weak to strong settings, and ends where one loses `_HOPELESS` nats more than uniform.
        """
        uniform = plan_prune(self.audit, replace(self.request, allocator="uniform", settings={}))
        found = [self.court.opened("uniform", uniform)]
        if self.court.far is not None:
            return found + self._side_by_side(found[0])
        for name, family in self._families():
            for settings in family:
                if len(found) >= _AT_LEAST and self._clock.share > 0.5:
                    return found
                found.append(self._scored(name, settings))
                if not found[-1].loss < found[0].loss + _HOPELESS:
                    break
        return found

    def _side_by_side(self, uniform: Scored) -> list[Scored]:
        """The same families, the n-th settings of all at once: those that lost too much before are out."""
        found: list[Scored] = []
        families = list(self._families())
        while families and not (found and self._clock.share > 0.5):
            ways = [(name, family[0], self._plan(name, family[0])) for name, family in families]
            scored = self.court.tried_all(ways)
            found += scored
            alive = (item.loss < uniform.loss + _HOPELESS for item in scored)
            families = [(n, rest[1:]) for (n, rest), lives in zip(families, alive, strict=True) if lives and rest[1:]]
        return found

    def _plan(self, name: str, settings: Mapping[str, Any]) -> Plan:
        return plan_prune(self.audit, replace(self.request, allocator=name, settings=settings))

    def _scored(self, name: str, settings: Mapping[str, Any]) -> Scored:
        return self.court.tried(name, settings, self._plan(name, settings))

    def from_sensitivity(self) -> list[Scored]:
        """The plan by measured losses of single tensors, where a sweep fits into the time; else nothing."""
        uniform = plan_prune(self.audit, replace(self.request, allocator="uniform", settings={}))
        if not self.can_refine:
            return []
        found = ((steps, self.court.for_sweep(len(steps) * len(uniform))) for steps in _SWEEPS)
        steps, windows = next(((steps, windows) for steps, windows in found if windows is not None), ((), None))
        if windows is None:
            return []
        levels = levels_of(uniform.sparsity, (0.0, *steps))
        losses = measured_losses(
            self.stage.trial, uniform, windows, levels=levels, progress=self._swept, measure=self.court.variant_losses
        )
        plan = self._scored("sensitivity", {"losses": losses})
        return [replace(plan, settings={"levels": list(levels)}, tried=len(losses) - len(uniform))]

    def _swept(self, done: int, total: int) -> None:
        self.court.tell(f"measuring tensor by tensor, {done} of {total}")

    def refine(self, best: Scored) -> Scored:
        """The best plan, changed by trial for the time that is left but for the last scores."""

        def moved(state: Refined) -> None:
            self.court.tell(f"search: perplexity {perplexity(state.loss):.4g} after {state.tried} moves")

        found = refined(
            lambda plan: float(self.court.score(plan).mean()),
            best.plan,
            over=lambda: self._clock.left < self.court.last_word,
            seed=self.stage.seed,
            progress=moved,
        )
        origin = {"from": best.name, **best.settings}
        losses = self.court.score(found.plan)
        return Scored("search", origin, found.plan, losses, notes=f"{found.kept} moves kept", tried=found.tried)

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
        plan = plan_prune(self.audit, replace(self.request, allocator="depth", settings={}))
        return float(plan.settings["beta"]) * 2 * share


def _final(kept: Scored, everything: list[Scored], search: _Search) -> Plan:
    decisions = kept.plan.decisions
    if kept.name == "search":
        decisions = tuple(_explained(item, kept.plan.sparsity) for item in decisions)
    plan = kept.plan.replace(allocator="auto", decisions=decisions, tried=rows_of(everything, kept))
    stage = search.stage
    notes = [
        f"sign: {direction_in_words(plan.operator)}; here nothing was believed, all was tried",
        depth_correlation(plan).words,
        verdict(kept, everything[0], search.court.stage.trial.material.unit),
        trials_in_words(search.court),
        *(note for note in kept.plan.notes if note.startswith(("left", "asked"))),
        *stage.notes,
    ]
    budget = dict(plan.budget) | {"reached": round(plan.sparsity, 9)} if search.can_refine else plan.budget
    settings = {"kept": kept.name, **kept.settings, "pattern": search.request.pattern, "seed": stage.seed}
    return plan.replace(budget=budget, settings=settings, notes=tuple(dict.fromkeys(notes)))


def _explained(item: Decision, mean: float) -> Decision:
    difference = (item.sparsity or 0.0) - mean
    word = "as the budget" if abs(difference) < 5e-4 else f"{'more' if difference > 0 else 'less'} than the budget"
    return replace(item, reason=f"found by trial: {word} ({difference:+.3f})")
