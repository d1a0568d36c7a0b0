"""`plan_auto_quantize()`: ways to spend bits are tried on the model, and the one that loses least on text is kept."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.formats import Choices, Levels
from tailwise.compression.operators.table import direction_in_words
from tailwise.compression.plans.asked import Asked, asked_of
from tailwise.compression.plans.bits import depth_words
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.make import plan_quantize
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.request import QuantizeRequest
from tailwise.compression.plans.treatment import Cast
from tailwise.errors import UsageError
from tailwise.planning.errors import ErrorTables, Table, error_tables
from tailwise.planning.refine_formats import Losses, Moved, refined_formats
from tailwise.planning.scored import Court, Scored, best_of_each, perplexity, rows_of, trials_in_words, verdict
from tailwise.planning.sensitivity import Variant

#: Powers of α that are tried; the best published ones run from 10 to 200.
_GAMMAS = (0.0, 1.0, 10.0, 100.0)
_TAUS = (0.1, 0.3)
_WORST = 50.0  # nats: a loss that is not finite counts as this


def plan_auto_quantize(audit: Audit, request: QuantizeRequest, court: Court) -> Plan:
    """The formats that lose least on calibration text, with a table of all that were tried.

    Uniform, depth, α by percentile, AlphaQ with several γ, and knapsacks over measured errors of weights and outputs
    come first, then over the measured loss of each group in each format where a sweep fits into the time; the best
    is refined by trial until the court's clock runs out. The best few are scored once more on windows that no step
    has seen, uniform among them, and the one with the least loss there is kept.
    """
    search = _Search(audit, request, court)
    candidates = search.candidates()
    court.judge(candidates[:1])
    candidates += search.from_sensitivity(candidates[0])
    best = min(candidates, key=lambda item: item.loss)
    finalists = [candidates[0], *best_of_each(candidates[1:], court.finalists)]
    found = search.refine(best)
    finalists += [found] if found.plan is not best.plan else []
    court.judge(finalists)
    kept = min(finalists, key=lambda item: item.judged)
    court.stage.trial.restore()
    return _final(kept, [*candidates, *(item for item in finalists if item not in candidates)], search)


class _Search:
    def __init__(self, audit: Audit, request: QuantizeRequest, court: Court) -> None:
        self.audit, self.request, self.court = audit, request, court
        self._clock = court.clock
        self.uniform = plan_quantize(audit, replace(request, allocator="uniform", settings={}))
        self.asked = asked_of(audit, replace(request, allocator="uniform", settings={}))
        self._believed: Losses | None = None

    @property
    def choices(self) -> Choices:
        return self.asked.choices

    def candidates(self) -> list[Scored]:
        """Every known way that needs no sweep; uniform is tried whatever the time."""
        found = [self.court.opened("uniform", self.uniform)]
        if len(self.choices.formats) == 1 or self._clock.share > 0.5:
            return found
        tables = error_tables(self.court.stage, self.uniform, self.choices.formats)
        self._believed = believed_losses(self.choices, tables.output or tables.weight)
        if self.court.far is not None:
            plans = [(name, settings, self._way(name, settings)) for name, settings in _ways(tables)]
            return found + self.court.tried_all([(n, s, plan) for n, s, plan in plans if plan is not None])
        for name, settings in _ways(tables):
            if self._clock.share > 0.5:
                break
            plan = self._way(name, settings)
            if plan is not None:
                found.append(self.court.tried(name, settings, plan))
        return found

    def _way(self, name: str, settings: Mapping[str, Any]) -> Plan | None:
        return self._plan(name, {key: value for key, value in settings.items() if key != "relative"})

    def _plan(self, allocator: str, settings: Mapping[str, Any]) -> Plan | None:
        try:
            return plan_quantize(self.audit, replace(self.request, allocator=allocator, settings=settings))
        except UsageError:
            if allocator in ("distortion", "outputs", "sensitivity"):  # a group that no input reached has no error
                return None
            raise

    def from_sensitivity(self, uniform: Scored) -> list[Scored]:
        """The plan by measured losses of each group in each format, where a sweep fits into the time."""
        variants = variants_of(self.choices, uniform.plan)
        windows = self.court.for_sweep(len(variants))
        if not variants or windows is None:
            return []
        losses = measured_formats(self.court, self.choices, uniform.plan, windows)
        self._believed = believed_losses(self.choices, losses)
        plan = self._plan("sensitivity", {"losses": losses})
        if plan is None:
            return []
        found = self.court.tried("sensitivity", {}, plan)
        return [replace(found, tried=len(variants))]

    def refine(self, best: Scored) -> Scored:
        """The best plan, changed by trial for the time that is left but for the last scores."""
        if self._believed is None or len(self.choices.groups) < 2:
            return best

        def moved(state: Moved) -> None:
            self.court.tell(f"search: perplexity {perplexity(state.loss):.4g} after {state.tried} moves")

        def score(levels: Levels) -> float:
            loss = float(self.court.score(with_levels(best.plan, self.choices, levels)).mean())
            return loss if np.isfinite(loss) else _WORST

        spare = self.court.last_word
        found = refined_formats(
            score,
            levels_of_plan(self.choices, best.plan),
            (self.choices, self._believed),
            over=lambda: self._clock.left < spare,
            seed=self.court.stage.seed,
            progress=moved,
        )
        if not found.kept:
            return best
        plan = with_levels(best.plan, self.choices, found.levels)
        return replace(
            self.court.tried("search", {"from": best.name, **best.settings}, plan),
            notes=f"{found.kept} moves kept",
            tried=found.tried,
        )


def _ways(tables: ErrorTables) -> Iterator[tuple[str, dict[str, Any]]]:
    """(allocator, settings); `relative` is told, and is no setting."""
    if tables.output:
        yield "outputs", {"losses": tables.output}
        yield "outputs", {"losses": tables.output_relative, "relative": True}
    yield "distortion", {"errors": tables.weight}
    yield "distortion", {"errors": tables.weight_relative, "relative": True}
    yield "depth", {}
    yield "alpha", {}
    for tau in _TAUS:
        yield "alpha", {"tau": tau}
    for gamma in _GAMMAS:
        yield "alphaq", {"gamma": gamma}


def variants_of(choices: Choices, around: Plan) -> list[Variant]:
    """Every group in every offered format but its own, with the others as in `around`."""
    place = {item.tensor: index for index, item in enumerate(around)}
    found = []
    for row, group in enumerate(choices.groups):
        own = around.decisions[place[group.members[0].tensor]].format
        for column, name in enumerate(choices.formats):
            if np.isfinite(choices.bits[row, column]) and name != own:
                entries = {place[item.tensor]: around[item.tensor].but(format=name) for item in group.members}
                found.append(Variant((row, name), entries))
    return found


def measured_formats(court: Court, choices: Choices, around: Plan, windows: torch.Tensor) -> Table:
    """(tensor, format) → change of loss when its group has this format; the first tensor of a group has it all."""

    def swept(done: int, total: int) -> None:
        court.tell(f"measuring group by group, {done} of {total}")

    variants = variants_of(choices, around)
    measured = court.variant_losses(around, windows, variants, swept)
    found: Table = {}
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            if not np.isfinite(choices.bits[row, column]):
                continue
            loss = measured.get((row, name), 0.0)
            for index, item in enumerate(group.members):
                found[item.tensor, name] = 0.0 if index else (loss if np.isfinite(loss) else _WORST)
    return found


def believed_losses(choices: Choices, table: Table) -> Losses:
    """(groups, formats): sums over the members, falling with the bits; what is not known counts as the mean."""
    found = np.full(choices.bits.shape, np.nan)
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            found[row, column] = sum(table.get((item.tensor, name), np.nan) for item in group.members)
    known = np.isfinite(found)
    mean = np.where(known, found, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, found, mean[None, :])


def levels_of_plan(choices: Choices, plan: Plan) -> Levels:
    """(groups,): the format of each, by its place among the formats."""
    formats = {item.tensor: item.treatment.words() for item in plan}
    return np.array([choices.formats.index(formats[group.members[0].tensor]) for group in choices.groups])


def with_levels(plan: Plan, choices: Choices, levels: Levels) -> Plan:
    """The plan with other formats."""
    chosen = {
        item.tensor: choices.formats[int(level)]
        for group, level in zip(choices.groups, levels, strict=True)
        for item in group.members
    }
    return plan.replace(decisions=tuple(replace(item, treatment=Cast(chosen[item.tensor])) for item in plan))


def _final(kept: Scored, everything: list[Scored], search: _Search) -> Plan:
    plan, court = kept.plan, search.court
    if kept.name == "search":
        plan = plan.replace(decisions=tuple(_explained(item) for item in plan))
    budget = {**plan.budget, **reached_in(plan, search.asked)}
    notes = [
        f"sign: {direction_in_words(plan.operator)}; here nothing was believed, all was tried",
        depth_words(plan),
        verdict(kept, everything[0], search.court.stage.trial.material.unit),
        trials_in_words(court),
        *search.asked.notes,
        *court.stage.notes,
    ]
    own = {name: value for name, value in kept.settings.items() if name not in plan.settings}
    return plan.replace(
        allocator="auto",
        budget=budget,
        settings={"kept": kept.name, **own, **plan.settings, "seed": court.stage.seed},
        tried=rows_of(everything, kept),
        notes=tuple(dict.fromkeys(notes)),
    )


def reached_in(plan: Plan, asked: Asked) -> dict[str, Any]:
    """What the entries of a plan come to."""
    weight = asked.choices.weight(levels_of_plan(asked.choices, plan))
    return {"reached": round(weight / plan.n_params, 9), "bytes": round(weight / 8)}


def _explained(item: Decision) -> Decision:
    tail = item.reason.partition("; one format for ")[2]
    return replace(item, reason="found by trial" + (f"; one format for {tail}" if tail else ""))
