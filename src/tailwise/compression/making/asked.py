"""What there is to choose, where formats are chosen: tensors, their groups, and what each takes in each format."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.bit_formats import ASSIGNERS, Assigner, Choices, FormatGroup
from tailwise.compression.making.bit_budget import bits_table, budget_of
from tailwise.compression.making.reach import check_reach
from tailwise.compression.making.request import QuantizeRequest, parsed_formats
from tailwise.compression.operators.registered import operator_of
from tailwise.compression.plans.bits import shape_of
from tailwise.compression.plans.candidates import Candidate, candidates
from tailwise.compression.plans.fusing import fused
from tailwise.compression.plans.phrasing import listed
from tailwise.core.errors import AS_NUMBERS, UsageError

ESTIMATOR = "top_outside"  # AlphaQuant's alpha_hill


@dataclass(frozen=True, eq=False)
class Asked:
    """A request, and what an audit says of it: what there is to choose."""

    found: tuple[Candidate, ...]
    shapes: Mapping[str, tuple[int, ...]]  # of each stored tensor, as it is quantized
    choices: Choices
    estimator: str | None  # of α
    notes: tuple[str, ...]


def asked_of(audit: Audit, request: QuantizeRequest) -> Asked:
    """The tensors, their groups, and what each takes in each format. Raises `UsageError`."""
    method, formats = ASSIGNERS[request.allocator], parsed_formats(request.formats)
    if not request.dequantize:
        _check_not_quantized(audit, looks=operator_of(request.operator, "quantize").looks)
    estimator, said = _estimator(audit, request, method)
    eligible, notes = candidates(audit, request.choice, estimator, packed=request.dequantize)
    eligible, shapes, more = _shaped(eligible, audit)
    if "variance" in method.needs:
        eligible = tuple(_with_variance(item, audit) for item in eligible)
    groups = tuple(
        FormatGroup(name, members) for name, members in fused(eligible, per_expert=request.per_expert).items()
    )
    table = bits_table(groups, shapes, formats)
    element = np.array([item.element_bits for item in formats])
    choices = Choices(groups, tuple(item.name for item in formats), element, table, None)
    budget = budget_of(audit, request.budget, eligible, formats)
    if budget is None and len(formats) == 1:
        budget = float(table.sum())
    choices = replace(choices, budget=budget)
    check_reach(audit, request.budget, choices, shapes)
    return Asked(eligible, shapes, choices, estimator, (*said, *notes, *more))


def _check_not_quantized(audit: Audit, *, looks: bool) -> None:
    packed = [row.name for row in audit.rows if row.measured and len(row.tensors) > 1 and row.kind != "lora"]
    if packed and all(len(row.tensors) > 1 for row in audit.rows if row.measured and row.block is not None):
        fix = "give the model that it was made from, or plan from the values that it decodes to with --dequantize"
        # An operator that computes with the model takes real numbers, and --dequantize would only be refused later.
        raise UsageError("its weights are quantized", where=audit.model, fix=AS_NUMBERS if looks else fix)


def _estimator(audit: Audit, request: QuantizeRequest, method: Assigner) -> tuple[str | None, tuple[str, ...]]:
    if not method.needs_alpha:
        return None, ()
    if request.estimator is not None:
        return request.estimator, ()
    own = str(audit.provenance.recipe.get("estimator", ""))
    if method.name == "alphaq" and own.startswith("farms"):
        return own, ()
    if method.name == "alphaq":
        note = f"AlphaQ fits α to 128 × 128 windows, which this audit has not: here it is {ESTIMATOR} of each matrix"
        return ESTIMATOR, (f"{note}; `tailwise audit --estimator farms:top_outside` has them",)
    return ESTIMATOR, ()


def _shaped(
    eligible: Sequence[Candidate], audit: Audit
) -> tuple[tuple[Candidate, ...], dict[str, tuple[int, ...]], tuple[str, ...]]:
    shapes = {item.tensor: shape_of(item, audit.provenance.config) for item in eligible}
    with_shape = tuple(item for item in eligible if shapes[item.tensor])
    left = [item.tensor for item in eligible if not shapes[item.tensor]]
    if not with_shape:
        raise UsageError("no tensor is left to plan for", where=audit.model, fix="loosen --roles or --layers")
    return with_shape, shapes, (f"left as they are, their parts have different inputs: {listed(left)}",) if left else ()


def _with_variance(item: Candidate, audit: Audit) -> Candidate:
    """Var(W) ≈ Σλ/numel over all matrices of the tensor."""
    rows = [row for row in audit.rows if row.measured and item.tensor in (row.tensors or (row.name,))]
    square = sum(float(audit[row.name].spectrum.eigenvalues.sum()) for row in rows)
    return replace(item, metrics={**item.metrics, "variance": square / item.n_params})
