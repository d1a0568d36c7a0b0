"""Plans that prune, and then quantize what is left: made of two, and taken apart again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

from tailwise.compression.operators.registered import OPERATORS, operator_of, operators_that
from tailwise.compression.plans.casting import Then
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.entries import BOTH, Entries, Part
from tailwise.compression.plans.treatment import TreatmentSettings
from tailwise.core.errors import UsageError

P = TypeVar("P", bound=Entries)


def combined(prune: P, quantize: P) -> P:
    """One plan that does both, the pruning first; zeros stay zeros. `UsageError` where the two do not go together."""
    for plan, kind in ((prune, "prune"), (quantize, "quantize")):
        if plan.kind != kind:
            raise UsageError(f"a plan to {plan.kind} stands where one to {kind} is needed", where=plan.model,
                             fix="give the plan to prune first, then the plan to quantize")  # fmt: skip
    if not operator_of(prune.operator).same_shape:
        raise UsageError(
            f"{prune.operator} changes shapes, so what the other plan says no longer fits",
            fix=f"prune with {', '.join(_keeping_shapes())}; or apply this plan first, and plan to quantize what "
            "comes out",
        )
    if prune.fingerprint and quantize.fingerprint and prune.fingerprint != quantize.fingerprint:
        raise UsageError(f"the plans are of two models: {prune.model} and {quantize.model}",
                         fix="make both from one audit, or from audits of the same selection")  # fmt: skip
    amounts = {item.tensor: item for item in prune}
    formats = {item.tensor: item for item in quantize}
    return prune.replace(
        kind=BOTH,
        operator=f"{prune.operator}+{quantize.operator}",
        allocator=f"{prune.allocator}+{quantize.allocator}",
        model=prune.model or quantize.model,
        fingerprint=prune.fingerprint or quantize.fingerprint,
        budget={"prune": dict(prune.budget), "quantize": dict(quantize.budget)},
        decisions=tuple(_both(amounts.get(name), formats.get(name)) for name in dict.fromkeys([*amounts, *formats])),
        settings={"prune": dict(prune.settings), "quantize": dict(quantize.settings)},
        tried=tuple({"part": plan.kind, **row} for plan in (prune, quantize) for row in plan.tried),
        notes=tuple(f"{plan.kind}: {note}" for plan in (prune, quantize) for note in plan.notes),
    )


def _keeping_shapes() -> list[str]:
    return [name for name, item in operators_that("prune").items() if item.same_shape]


def _both(amount: Decision | None, chosen: Decision | None) -> Decision:
    if amount is None or chosen is None:
        only = amount or chosen
        assert only is not None  # noqa: S101 - the name came from one of the two
        return only
    return Decision(
        replace(amount.site, shape=chosen.shape or amount.shape),
        Then(amount.treatment, chosen.treatment),
        {**amount.metrics, **chosen.metrics},
        f"prune: {amount.reason}; quantize: {chosen.reason}",
    )


def part_of(plan: P, kind: Part) -> P:
    """What a plan that does both says of one of the two."""
    operators, allocators = plan.operator.partition("+"), plan.allocator.partition("+")
    place, unit = (0, "parameters") if kind == "prune" else (2, "bits")
    return plan.replace(
        kind=kind,
        operator=operators[place],
        allocator=allocators[place],
        budget=_inner(plan.budget, kind),
        settings=_inner(plan.settings, kind),
        decisions=tuple(
            replace(item, treatment=treatment)
            for item in plan
            for treatment in item.treatment.parts
            if treatment.unit == unit
        ),
        tried=(),
        notes=tuple(note.removeprefix(f"{kind}: ") for note in plan.notes if note.startswith(f"{kind}: ")),
    )


def _inner(held: Mapping[str, Any], kind: Part) -> dict[str, Any]:
    inner = held.get(kind)
    return dict(inner) if isinstance(inner, Mapping) else {}


def how_of(plan: Entries, *, text: bool = False) -> TreatmentSettings:
    """The operator and what a plan says once for all entries; of a plan that does both, one after the other.

    With calibration `text`, low rank is chosen by what the inputs of each layer see.
    """
    if plan.is_both:
        first, then = (how_of(part_of(plan, kind), text=text) for kind in ("prune", "quantize"))
        return replace(first, then=replace(then, keep_zeros=True))
    operator = OPERATORS[plan.operator]
    if text and operator.with_text:
        operator = OPERATORS[operator.with_text]
    return TreatmentSettings(operator, plan.settings.get("act_order") is True)
