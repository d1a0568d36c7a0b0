"""By which operator the entries of a plan are carried out. Imports no torch."""

from __future__ import annotations

from dataclasses import replace

from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.combined import part_of
from tailwise.compression.plans.entries import Entries
from tailwise.compression.plans.treatment import TreatmentSettings


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
