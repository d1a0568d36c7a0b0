"""Plans of number formats that are tried: by one way that is measured on text, by all of them, or within a rise."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from typing_extensions import override

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.bit_formats import ASSIGNERS, Choices, Levels
from tailwise.compression.making.asked import Asked, asked_of
from tailwise.compression.making.make import plan_quantize
from tailwise.compression.making.request import QuantizeRequest, parsed_formats
from tailwise.compression.plans.bits import depth_words
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.trying.auto import Search, Way, auto
from tailwise.compression.trying.descend import descended_formats
from tailwise.compression.trying.layer_errors import ErrorTables, Table, error_tables
from tailwise.compression.trying.refine import Best, Losses, refined_formats
from tailwise.compression.trying.rise import ends, plan_within_rise
from tailwise.compression.trying.scored import PlanScorer, Scored
from tailwise.compression.trying.sensitivity import Variant
from tailwise.core.errors import UsageError

#: Powers of α that are tried; the best published ones run from 10 to 200.
_GAMMAS = (10.0, 100.0, 1.0, 0.0)
_TAUS = (0.1, 0.3)
#: Of a way in the table, and no setting.
_TOLD = ("relative", "estimated")
#: Measured on text, from one pass over it: what is called sensitivity elsewhere, without a loss.
OUTPUTS = "outputs"
_TURN = 0.4  # of the time that is left, for each search within a rise of perplexity
_ERRORS = 0.3  # of the time, after which errors of tensors are not measured any more


@dataclass(frozen=True)
class Formats:
    """A plan to quantize to be made."""

    audit: Audit
    request: QuantizeRequest
    from_text = ("sensitivity", OUTPUTS)

    @property
    def by_perplexity(self) -> bool:
        """Whether the limit is one of perplexity, so that the loss is what counts."""
        return self.request.rise is not None

    untried = (
        "no calibration text was given, so nothing could be tried and the bits are spent evenly; "
        "with --calibration TEXT, candidates are scored and the best is kept"
    )

    def plan(self, allocator: str) -> Plan:
        """By an allocator, from the audit alone."""
        return plan_quantize(self.audit, replace(self.request, allocator=allocator))

    def around(self) -> Plan:
        """A plan of the same tensors that needs no text; with the most bits where they are yet to be found."""
        bare = replace(self.request, allocator="uniform", settings={}, study=None, relative=False, estimator=None)
        if self.request.rise is not None:
            bare = replace(bare, rise=None, bits=ends(self.audit, self.request)[1])
        return plan_quantize(self.audit, bare)

    def reads(self, allocator: str) -> bool:
        """Whether the plan takes text."""
        return allocator in self.from_text or self.request.rise is not None

    def check_without_text(self, allocator: str) -> None:
        """`UsageError` where it cannot be made without."""
        if self.reads(allocator):
            what = "a rise of perplexity" if self.request.rise is not None else allocator
            raise UsageError(f"{what} is measured on text, and there is none", fix="give --calibration TEXT")

    def auto(self, scorer: PlanScorer) -> Plan:
        """By whatever loses least."""
        if self.request.rise is not None:
            return self._within_rise(scorer)
        return auto(FormatSearch(self, scorer))

    def measured(self, scorer: PlanScorer, allocator: str) -> Plan:
        """By what was measured of each tensor in each format; within a rise, by any allocator."""
        if self.request.rise is not None:

            def made(request: QuantizeRequest) -> Plan:
                asked = replace(self, request=request)
                return asked.measured(scorer, allocator) if allocator in self.from_text else asked.plan(allocator)

            return plan_within_rise(self.audit, self.request, scorer, (made, made))
        around = self.around()
        choices = asked_of(self.audit, replace(self.request, allocator="uniform", settings={})).choices
        if allocator == OUTPUTS:
            # It is what was asked for: however long that takes.
            tables = error_tables(scorer.stage, around, choices.formats, progress=_measuring(scorer))
            losses = {} if tables is None else tables.output
        else:
            losses = measured_formats(choices, around, partial(_swept, scorer)) or {}
        scorer.stage.trial.restore()
        plan = plan_quantize(self.audit, replace(self.request, allocator=allocator, settings={"losses": losses}))
        return plan.replace(notes=(*plan.notes, *scorer.stage.notes))

    def _within_rise(self, scorer: PlanScorer) -> Plan:
        formats = [item.name for item in parsed_formats(self.request.formats)]
        tables = _errors_in_time(scorer, self.around(), formats)
        errors = {} if tables is None else tables.output

        def quick(request: QuantizeRequest) -> Plan:
            if tables is None:
                return plan_quantize(self.audit, replace(request, allocator="uniform", settings={}))
            return plan_quantize(self.audit, replace(request, allocator=OUTPUTS, settings={"losses": errors}))

        def final(request: QuantizeRequest) -> Plan:
            part = replace(scorer, clock=scorer.clock.part(_TURN))
            return auto(FormatSearch(replace(self, request=request), part))

        return plan_within_rise(self.audit, self.request, scorer, (quick, final))


class FormatSearch(Search):
    """Uniform, depth, α by percentile, AlphaQ with several γ, and knapsacks over measured errors and losses."""

    by_depth = "ends"

    def __init__(self, made: Formats, scorer: PlanScorer) -> None:
        super().__init__(scorer)
        self.audit, self.request = made.audit, made.request
        bare = replace(made.request, allocator="uniform", settings={})
        self.uniform, self.asked = plan_quantize(made.audit, bare), asked_of(made.audit, bare)
        self._believed: Losses | None = None

    @property
    def choices(self) -> Choices:
        """What there is to choose from."""
        return self.asked.choices

    @property
    @override
    def always(self) -> tuple[Way, ...]:
        return (("depth", {}),) if len(self.choices.formats) > 1 else ()

    @override
    def reads_alpha(self, name: str) -> bool:
        return name in ASSIGNERS and ASSIGNERS[name].needs_alpha

    @property
    @override
    def known(self) -> int:
        return 6 if len(self.choices.formats) > 1 else 0

    @override
    def ways(self) -> Iterator[Sequence[Way]]:
        if len(self.choices.formats) == 1:
            return
        yield from self._by_errors()
        yield [("ends", {}), *(("ends", {"tau": tau}) for tau in _TAUS)]
        yield [("depth", {"tau": tau}) for tau in _TAUS]
        yield [("alpha", {}), *(("alpha", {"tau": tau}) for tau in _TAUS)]
        yield [("alphaq", {"gamma": gamma}) for gamma in _GAMMAS]

    def _by_errors(self) -> Iterator[Sequence[Way]]:
        """The ways that look at what each tensor loses in each format, where that is measured in its share of time."""
        began, reached = self.clock.spent, [0.0]
        tables = _errors_in_time(self.scorer, self.uniform, self.choices.formats, reached)
        if tables is None:
            took = self.clock.spent - began
            self.measuring = took / reached[0] if reached[0] else 0.0
            self.untried += [OUTPUTS, "distortion"]
            return
        self._believed = believed_losses(self.choices, tables.output or tables.weight)
        if tables.output:
            yield [
                ("outputs", {"losses": tables.output}),
                ("outputs", {"losses": tables.output_relative, "relative": True}),
            ]
        yield [
            ("distortion", {"errors": tables.weight}),
            ("distortion", {"errors": tables.weight_relative, "relative": True}),
        ]

    @override
    def plan_of(self, name: str, settings: Mapping[str, Any]) -> Plan | None:
        told = {key: value for key, value in settings.items() if key not in _TOLD}
        try:
            return plan_quantize(self.audit, replace(self.request, allocator=name, settings=told))
        except UsageError:
            if name in ("distortion", "outputs", "sensitivity"):  # a group that no input reached has no error
                return None
            raise

    @override
    def by_gradient(self, uniform: Scored) -> Scored | None:
        if not variants_of(self.choices, uniform.plan):
            return None
        losses = measured_formats(self.choices, uniform.plan, self.scorer.estimated)
        if losses is None:
            return None
        self._believed = believed_losses(self.choices, losses)
        settings = {"losses": losses, "estimated": "gradient"}
        plan = self.plan_of("sensitivity", settings)
        return None if plan is None else self.scorer.tried("sensitivity", settings, plan)

    @override
    def refine(self, best: Scored) -> Scored:
        """Along the gradient for as long as it helps; then groups are moved at random."""
        if self._believed is None or len(self.choices.groups) < 2:
            return best
        scorer, choices = self.scorer, self.choices

        def moved(state: Best[Levels]) -> None:
            self.moved(state.loss, state.tried)

        def score(levels: Levels) -> float:
            return min(scorer.mean(with_levels(best.plan, choices, levels)), WORST)

        def estimate(levels: Levels, moves: Sequence[tuple[int, int]]) -> Mapping[Hashable, float]:
            around = with_levels(best.plan, choices, levels)
            return scorer.estimated(around, [variant_of(choices, around, *move) for move in moves])

        def over() -> bool:
            return scorer.over

        found = Best(levels_of_plan(choices, best.plan), min(best.loss, WORST))
        descended_formats(score, estimate, found, choices, over=over, progress=moved)
        problem = (choices, self._believed)
        refined_formats(score, found, problem, over=over, seed=self.stage.seed, progress=moved)
        if not found.kept:
            return best
        plan = with_levels(best.plan, choices, found.state)
        return replace(scorer.tried("search", {"from": best.name, **best.settings}, plan), tried=found.tried)

    @override
    def told(self, best: Scored) -> Plan:
        plan = best.plan
        if best.name == "search":
            plan = plan.replace(decisions=tuple(_explained(item) for item in plan))
        own = {name: value for name, value in best.settings.items() if name not in plan.settings}
        budget = {**plan.budget, **reached_in(plan, self.asked)}
        return plan.replace(budget=budget, settings={**own, **plan.settings})

    @override
    def notes(self, best: Scored) -> tuple[str, tuple[str, ...]]:
        return depth_words(best.plan), self.asked.notes


def reached_in(plan: Plan, asked: Asked) -> dict[str, Any]:
    """What the entries of a plan come to."""
    weight = asked.choices.weight(levels_of_plan(asked.choices, plan))
    return {"achieved": round(weight / plan.n_params, 9), "bytes": round(weight / 8)}


def _explained(item: Decision) -> Decision:
    tail = item.reason.partition("; one format for ")[2]
    return replace(item, reason="found by trial" + (f"; one format for {tail}" if tail else ""))


def _measuring(scorer: PlanScorer) -> Callable[[float], None]:
    return lambda share: scorer.tell(f"measuring errors of every format, {100 * share:.0f} %")


def _errors_in_time(
    scorer: PlanScorer, plan: Plan, formats: Sequence[str], reached: list[float] | None = None
) -> ErrorTables | None:
    """Errors of every tensor in every format, in their share of the time; None where it is over before.

    `reached` takes how far it came.
    """
    tell = _measuring(scorer)

    def told(share: float) -> None:
        tell(share)
        if reached is not None:
            reached[0] = share

    return error_tables(
        scorer.stage, plan, formats, ends=lambda: scorer.over or scorer.clock.share > _ERRORS, progress=told
    )


WORST = 50.0  # nats: a loss that is not finite counts as this


def _swept(scorer: PlanScorer, around: Plan, variants: Sequence[Variant]) -> Mapping[Hashable, float]:
    def told(done: int, total: int) -> None:
        scorer.tell(f"measuring group by group, {done} of {total}")

    return scorer.variant_losses(around, scorer.stage.search, variants, told)


def variants_of(choices: Choices, around: Plan) -> list[Variant]:
    """Every group in every offered format but its own, with the others as in `around`."""
    own = levels_of_plan(choices, around)
    return [
        variant_of(choices, around, row, column)
        for row in range(len(choices.groups))
        for column in range(len(choices.formats))
        if np.isfinite(choices.bits[row, column]) and column != own[row]
    ]


def variant_of(choices: Choices, around: Plan, row: int, column: int) -> Variant:
    """One group in one format, with the others as in `around`."""
    place = {item.tensor: index for index, item in enumerate(around)}
    name, members = choices.formats[column], choices.groups[row].members
    return Variant((row, column), {place[item.tensor]: around[item.tensor].but(format=name) for item in members})


Measured = Callable[[Plan, Sequence[Variant]], Mapping[Hashable, float]]


def measured_formats(choices: Choices, around: Plan, measure: Measured) -> Table | None:
    """(tensor, format) → change of loss when its group has this format; the first tensor of a group has it all.

    None where the time was over before all were measured.
    """
    variants = variants_of(choices, around)
    measured = measure(around, variants)
    if len(measured) < len(variants):
        return None
    table: Table = {}
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            if not np.isfinite(choices.bits[row, column]):
                continue
            loss = measured.get((row, column), 0.0)
            for index, item in enumerate(group.members):
                table[item.tensor, name] = 0.0 if index else (loss if np.isfinite(loss) else WORST)
    return table


def believed_losses(choices: Choices, table: Table) -> Losses:
    """(groups, formats): sums over the members, falling with the bits; what is not known counts as the mean."""
    losses = np.full(choices.bits.shape, np.nan)
    for row, group in enumerate(choices.groups):
        for column, name in enumerate(choices.formats):
            losses[row, column] = sum(table.get((item.tensor, name), np.nan) for item in group.members)
    known = np.isfinite(losses)
    mean = np.where(known, losses, 0.0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    return np.where(known, losses, mean[None, :])


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
    return plan.replace(decisions=tuple(item.but(format=chosen[item.tensor]) for item in plan))
