"""`plan_quantize()`: an audit and a budget of bits to a plan."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.formats import (
    ASSIGNERS,
    Assigner,
    Assignment,
    Choices,
    FormatSettings,
    Group,
)
from tailwise.compression.operators.table import direction_in_words, operator_of
from tailwise.compression.plans.bit_budget import NEAR, bits_table, budget_of, check_reach, listed, spent
from tailwise.compression.plans.bits import depth_words, has_whole_groups, shape_of
from tailwise.compression.plans.candidates import Candidate, Choice, audited_part, candidates
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.fusing import fused
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.study_errors import errors_of
from tailwise.compression.plans.treatment import Cast
from tailwise.errors import UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import NumberFormat
from tailwise.precision.study import PrecisionStudy

#: AlphaQuant's formats.
FORMATS = ("mxfp4", "mxfp8", "bf16")
ESTIMATOR = "top_outside"  # AlphaQuant's alpha_hill
#: Above this, published gains of uneven bits on autoregressive models are nil.
GAINS_TO = 3.5


@dataclass(frozen=True)
class QuantizeRequest:
    """What is asked of a plan to quantize. `settings` are fields of `FormatSettings` that the user gave, by name."""

    bits: float | None = None  # mean bits per weight of the planned tensors, scales counted; one format needs none
    bytes: int | None = None  # of the whole model, with what the plan leaves as it is
    rise: float | None = None  # of perplexity, as a fraction: the fewest bits that stay below it, found by trial
    formats: tuple[str, ...] = FORMATS
    allocator: str = "uniform"
    operator: str = "rtn"
    choice: Choice = field(default_factory=Choice)
    per_expert: bool = False  # experts of a block may differ
    act_order: bool = False  # gptq: columns in the order of their inputs' energy
    estimator: str | None = None  # of α
    study: PrecisionStudy | None = None  # for `distortion`
    relative: bool = False  # `distortion`: relative errors
    dequantize: bool = False  # plan for a model that is quantized already, from the values that it decodes to
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A wrong request is told before a model is read for it.
        operator_of(self.operator, "quantize")
        if self.act_order and self.operator != "gptq":
            raise UsageError(f"{self.operator} has no order of columns", fix="leave --act-order out, or take gptq")
        parsed_formats(self.formats)
        method = ASSIGNERS[self.allocator]
        _settings(method, self)
        _check_budget(self)
        if self.estimator is not None and "alpha" not in method.needs:
            raise UsageError(f"{method.name} looks at no α", fix="leave --estimator out")
        if (self.study is not None or self.relative) and "errors" not in method.takes:
            raise UsageError(f"{method.name} reads no study", fix="leave --study out, or take --allocator distortion")


def plan_quantize(audit: Audit, request: QuantizeRequest) -> Plan:
    """Say which tensor is to have which number format.

    Reads the audit alone (and the study that it is given). Tensors that servers fuse get one format. Where the groups
    of a format do not divide a tensor's inputs, the last one is shorter, and a note says so. Raises `UsageError` where
    what is asked cannot be.
    """
    method = ASSIGNERS[request.allocator]
    if request.rise is not None:
        raise UsageError("a rise of perplexity is measured on text", fix="give --calibration TEXT, or --bits")
    asked = asked_of(audit, request)
    settings = _settings(method, request)
    if "errors" in method.takes and request.study is not None:
        errors = errors_of(request.study, audit, asked.found, asked.choices.formats, relative=request.relative)
        settings = replace(settings, errors=errors)
    assignment = method(asked.choices, settings)
    _check(method, assignment, asked.choices)
    plan = Plan(
        kind="quantize",
        operator=request.operator,
        allocator=request.allocator,
        model=audit.model,
        fingerprint=audit.provenance.fingerprint,
        budget={},
        decisions=_decisions(asked, assignment),
        settings=_recorded(request, assignment, asked) | _audited(audit),
    )
    plan = replace(plan, budget=spent(audit, plan, request, asked.choices.budget))
    return replace(plan, notes=(*_said(plan), *assignment.notes, *asked.notes))


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
        _check_not_quantized(audit)
    estimator, said = _estimator(audit, request, method)
    found, notes = candidates(audit, request.choice, estimator, packed=request.dequantize)
    found, shapes, more = _shaped(found, audit)
    if "variance" in method.needs:
        found = tuple(_with_variance(item, audit) for item in found)
    groups = tuple(Group(name, members) for name, members in fused(found, per_expert=request.per_expert).items())
    table = bits_table(groups, shapes, formats)
    budget = budget_of(audit, request, found)
    if budget is None and len(formats) == 1:
        budget = float(table.sum())
    check_reach(budget, table, sum(item.n_params for item in found))
    element = np.array([item.element_bits for item in formats])
    choices = Choices(groups, tuple(item.name for item in formats), element, table, budget)
    return Asked(found, shapes, choices, estimator, (*said, *notes, *more))


def parsed_formats(names: Sequence[str]) -> tuple[NumberFormat, ...]:
    """The formats, each once, ascending in bits of a large matrix. `UsageError` where there is none."""
    found = {item.name: item for item in map(parse_format, names)}
    if not found:
        raise UsageError("there is no format to choose from", fix=f"use --formats {','.join(FORMATS)}")
    return tuple(sorted(found.values(), key=lambda item: (item.bits_per_weight(4096, 4096), item.name)))


def _settings(method: Assigner, request: QuantizeRequest) -> FormatSettings:
    return method.settings(FormatSettings, request.settings)


def _check_budget(request: QuantizeRequest) -> None:
    given = [value for value in (request.bits, request.bytes, request.rise) if value is not None]
    ratios = FormatSettings(**request.settings).has_ratios
    if ratios and given:
        raise UsageError("ratios say how many bits", fix="leave the budget out, or the ratios")
    if len(given) > 1:
        raise UsageError("these are two budgets", fix="give one of --bits, --bytes and --perplexity-rise")
    if not given and not ratios and len(parsed_formats(request.formats)) > 1:
        raise UsageError("how many bits?", fix="give --bits, e.g. 4.5, or --bytes, or --perplexity-rise")
    if given and not (np.isfinite(given[0]) and given[0] > 0):
        raise UsageError(f"a budget of {given[0]:g} cannot be met", fix="give a number above 0")


def _check_not_quantized(audit: Audit) -> None:
    packed = [row.name for row in audit.rows if row.measured and len(row.tensors) > 1 and row.kind != "lora"]
    if packed and all(len(row.tensors) > 1 for row in audit.rows if row.measured and row.block is not None):
        fix = "give the model that it was made from, or plan from the values that it decodes to with --dequantize"
        raise UsageError("its weights are quantized", where=audit.model, fix=fix)


def _estimator(audit: Audit, request: QuantizeRequest, method: Assigner) -> tuple[str | None, tuple[str, ...]]:
    if "alpha" not in method.needs:
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
    found: Sequence[Candidate], audit: Audit
) -> tuple[tuple[Candidate, ...], dict[str, tuple[int, ...]], tuple[str, ...]]:
    shapes = {item.tensor: shape_of(item, audit.provenance.config) for item in found}
    kept = tuple(item for item in found if shapes[item.tensor])
    left = [item.tensor for item in found if not shapes[item.tensor]]
    if not kept:
        raise UsageError("no tensor is left to plan for", where=audit.model, fix="loosen --roles or --layers")
    return kept, shapes, (f"left as they are, their parts have different inputs: {listed(left)}",) if left else ()


def _with_variance(item: Candidate, audit: Audit) -> Candidate:
    """Var(W) ≈ Σλ/numel over all matrices of the tensor."""
    rows = [row for row in audit.rows if row.measured and item.tensor in (row.tensors or (row.name,))]
    square = sum(float(audit[row.name].spectrum.eigenvalues.sum()) for row in rows)
    return replace(item, metrics={**item.metrics, "variance": square / item.n_params})


def _check(method: Assigner, assignment: Assignment, choices: Choices) -> None:
    """Third parties' assigners are held to what the built-in ones promise."""
    levels = np.asarray(assignment.levels)
    if levels.shape != (len(choices.groups),) or not np.isfinite(choices.bits[np.arange(len(levels)), levels]).all():
        raise UsageError(f"the allocator {method.name} gave no offered format for each tensor")
    if choices.budget is not None and choices.weight(levels) > choices.budget * (1 + 1e-9):
        raise UsageError(f"the allocator {method.name} did not stay within the budget")


def _decisions(asked: Asked, assignment: Assignment) -> tuple[Decision, ...]:
    choices = asked.choices
    place = {item.tensor: row for row, group in enumerate(choices.groups) for item in group.members}
    alone = [len(group.members) == 1 for group in choices.groups]
    made = []
    for item in asked.found:
        row = place[item.tensor]
        with_others = "" if alone[row] else f"; one format for {choices.groups[row].name}"
        made.append(
            Decision(
                replace(item.site, shape=asked.shapes[item.tensor]),
                Cast(choices.formats[int(assignment.levels[row])]),
                metrics={name: _rounded(item.metrics[name]) for name in assignment.used if name in item.metrics},
                reason=assignment.reasons[row] + with_others,
            )
        )
    return tuple(made)


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _recorded(request: QuantizeRequest, assignment: Assignment, asked: Asked) -> dict[str, Any]:
    found: dict[str, Any] = {**assignment.settings, "formats": list(asked.choices.formats)}
    choice = request.choice
    more = {
        "estimator": asked.estimator,
        "per_expert": request.per_expert,
        "act_order": request.act_order,
        "relative": request.relative,
        "dequantize": request.dequantize,
        "study": None if request.study is None else request.study.model,
        "roles": list(choice.roles),
        "layers": choice.layers,
        "also": list(choice.also),
    }
    return found | {name: value for name, value in more.items() if value}


def _audited(audit: Audit) -> dict[str, Any]:
    part = audited_part(audit)
    return {"audited": part} if part else {}


def _said(plan: Plan) -> list[str]:
    asked, reached = plan.budget["asked"], plan.budget["reached"]
    reads = any(name.startswith("alpha") for name in ASSIGNERS[plan.allocator].needs)
    notes = [f"sign: {direction_in_words(plan.operator)}" + ("" if reads else "; this allocator does not look at α")]
    notes.append(depth_words(plan))
    if reached < asked * (1 - NEAR):
        notes.append(
            f"asked for {asked:.6g} bits, reached {reached:.6g}: whole tensors and these formats come no nearer"
        )
    if plan.allocator != "uniform" and reached > GAINS_TO:
        notes.append(f"above {GAINS_TO} bits, published gains of uneven bits over uniform are nil")
    return [*notes, *_shorter(plan)]


def _shorter(plan: Plan) -> Iterator[str]:
    """Of each format whose groups do not divide the inputs of a tensor that has it: packings and kernels refuse it."""
    names: dict[str, list[str]] = {}
    for decision in plan:
        cast = decision.treatment.cast
        if cast is not None and not has_whole_groups(cast.number_format, decision.shape):
            names.setdefault(cast.to, []).append(decision.tensor)
    for name, tensors in names.items():
        yield (
            f"{name}: the last group of a row is shorter in {len(tensors)} tensor{'s' * (len(tensors) != 1)} "
            f"({listed(tensors)}); `apply` writes such values, but other tools and --packed take whole groups"
        )
