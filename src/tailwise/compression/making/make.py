"""`plan_prune()` and `plan_quantize()`: an audit and a request to a plan."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.audits.precision.study import LayerStudy, PrecisionStudy
from tailwise.compression.choosing.amounts import ALLOCATORS, Allocation, Allocator, sizes_of
from tailwise.compression.choosing.bit_formats import ASSIGNERS, Assigner, Assignment, Choices
from tailwise.compression.making.asked import Asked, asked_of
from tailwise.compression.making.bit_budget import NEAR, spent
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.operators.operator import Operator
from tailwise.compression.operators.registered import direction_in_words, operator_of
from tailwise.compression.plans.bits import depth_words, has_whole_groups, stack_shape
from tailwise.compression.plans.budget import Budget, held
from tailwise.compression.plans.candidates import Candidate, TensorChoice, audited_part, candidates, estimator_for
from tailwise.compression.plans.casting import Cast, noted
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.entries import Part
from tailwise.compression.plans.patterns import UNSTRUCTURED, Pattern
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.rank_correlation import depth_correlation
from tailwise.compression.plans.whole_units import Whole, ranks_of, removed_of
from tailwise.core.errors import UsageError
from tailwise.core.validation import checked

#: Below this sparsity, published gains of uneven allocation on autoregressive models are nil.
GAINS_FROM = 0.6
#: Above this many bits, published gains of uneven bits are nil.
GAINS_TO = 3.5
DIGITS = 9  # of amounts: fine enough for a budget held to 1e-6, short enough to read
_CUT = re.compile(r"(?:attn_(?:q|k|v|o|qkv|kv)|mlp_(?:gate|up|down|gate_up))")
_TOGETHER = re.compile(r"(attn|mlp|shared|expert)(?:_|$)")


@checked
def plan_prune(audit: Audit, request: Request) -> Plan:
    """Say what to remove of which tensor.

    Reads the audit alone; α is fitted to its spectra by AlphaPruning's estimator. Raises `UsageError` where what is
    asked cannot be.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> weights = {f"model.layers.{i}.mlp.up_proj.weight": noise.standard_normal((256, 128)) for i in range(3)}
    >>> audit = tw.audit(weights, use_cache=False)
    >>> plan = tw.plans.plan_prune(audit, tw.plans.Request(sparsity=0.5, allocator="uniform"))
    >>> plan
    Plan('dict': prune, magnitude, uniform; 3 tensors, sparsity 0.5)
    """
    operator, pattern, budget = operator_of(request.operator), request.parsed_pattern, request.budget
    method = ALLOCATORS[request.allocator]
    if request.estimator is not None and not method.needs_alpha:
        raise UsageError(f"{method.name} looks at no α", fix="leave --estimator out")
    estimator = (request.estimator or estimator_for(audit)) if method.needs_alpha else None
    found, notes = candidates(audit, request.choice, estimator)
    shapes = {item.tensor: item.shape or stack_shape(item, audit.provenance.config) for item in found}
    found, more = _fitting(found, shapes, (pattern, operator), cuts=budget.amount > 0)
    allocation = method(found, budget, request.told)
    _check_amounts(method, allocation, found, budget)
    if operator.work is None:
        allocation = _tied(found, allocation)
    settings: dict[str, Any] = {**allocation.settings, "pattern": request.pattern}
    settings |= {"estimator": estimator} if estimator is not None else {}
    settings |= {} if request.clamp else {"clamp": False}
    settings |= _audited(audit) | _chosen(request.choice)
    decisions = _amounts(found, allocation, pattern, operator)
    if operator.ranks:
        decisions = _ranked(decisions, shapes, _places(found))
    plan = _plan("prune", audit, request, decisions, settings)
    plan = replace(plan, budget=_shares(audit, plan, budget.amount))
    return replace(plan, notes=(*_said_of_amounts(plan, allocation.sign), *allocation.notes, *notes, *more))


@checked
def plan_quantize(audit: Audit, request: QuantizeRequest) -> Plan:
    """Say which tensor is to have which number format.

    Reads the audit alone (and the study that it is given). Tensors that servers fuse get one format. Where the groups
    of a format do not divide a tensor's inputs, the last one is shorter, and a note says so. Raises `UsageError` where
    what is asked cannot be.

    >>> import numpy as np, tailwise as tw
    >>> noise = np.random.default_rng(0)
    >>> weights = {f"model.layers.{i}.mlp.up_proj.weight": noise.standard_normal((256, 128)) for i in range(3)}
    >>> audit = tw.audit(weights, use_cache=False)
    >>> plan = tw.plans.plan_quantize(audit, tw.plans.QuantizeRequest(bits=6, formats="int4,int8"))
    >>> [decision.format for decision in plan]
    ['int4', 'int8', 'int4']
    """
    method, budget = ASSIGNERS[request.allocator], request.budget
    if budget is not None and budget.unit == "rise":
        raise UsageError("a rise of perplexity is measured on text", fix="give --calibration TEXT, or --bits")
    asked, told = asked_of(audit, request), request.told
    if "errors" in method.takes and request.study is not None:
        errors = errors_of(request.study, audit, asked.found, asked.choices.formats, relative=request.relative)
        told = replace(told, errors=errors)
    assignment = method(asked.choices, told)
    _check_formats(method, assignment, asked.choices)
    settings: dict[str, Any] = {**assignment.settings, "formats": list(asked.choices.formats)}
    more = {
        "estimator": asked.estimator,
        "per_expert": request.per_expert,
        "act_order": request.act_order,
        "relative": request.relative,
        "dequantize": request.dequantize,
        "study": None if request.study is None else request.study.model,
    }
    settings |= {name: value for name, value in more.items() if value} | _chosen(request.choice) | _audited(audit)
    plan = _plan("quantize", audit, request, _formats(asked, assignment), settings)
    plan = replace(plan, budget=spent(audit, plan, request.bytes, asked.choices.budget))
    return replace(plan, notes=(*_said_of_formats(plan), *assignment.notes, *asked.notes))


def _plan(
    kind: Part,
    audit: Audit,
    request: Request | QuantizeRequest,
    decisions: tuple[Decision, ...],
    settings: Mapping[str, Any],
) -> Plan:
    """Without its budget and notes."""
    fingerprint = audit.provenance.fingerprint
    return Plan(kind, request.operator, request.allocator, audit.model, fingerprint, {}, decisions, settings)


def _chosen(choice: TensorChoice) -> dict[str, Any]:
    found = {"roles": list(choice.roles), "layers": choice.layers, "also": list(choice.also)}
    return {name: value for name, value in found.items() if value}


def _audited(audit: Audit) -> dict[str, Any]:
    part = audited_part(audit)
    return {"audited": part} if part else {}


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _fitting(
    found: tuple[Candidate, ...], shapes: Mapping[str, tuple[int, ...]], how: tuple[Pattern, Operator], *, cuts: bool
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidates that the pattern and the operator can be done to, and a note on the others."""
    pattern, operator = how
    if pattern.group is not None:
        kept = tuple(item for item in found if not item.shape or item.shape[1] % pattern.group == 0)
        why = f"their input axis is no multiple of {pattern.group}"
    elif operator.ranks:
        kept = tuple(item for item in found if shapes[item.tensor] and item.kind in ("dense", "expert"))
        why = "low rank takes tensors that hold one matrix, or one an expert, and no convolutions"
    elif operator.work is None and cuts:  # whole blocks can go whatever is in them
        kept = tuple(item for item in found if _CUT.fullmatch(item.role))
        why = "heads are cut of attention, neurons of plain MLPs"
    else:
        return found, ()
    if not kept:
        raise UsageError(f"no tensor fits: {why}", fix="take another --pattern or --operator")
    left = len(found) - len(kept)
    return kept, (f"left as they are, {left} tensors: {why}",) if left else ()


def _check_amounts(method: Allocator, allocation: Allocation, found: Sequence[Candidate], budget: Budget) -> None:
    """Third parties' allocators are held to what the built-in ones promise."""
    amounts = np.asarray(allocation.amounts)
    if amounts.shape != (len(found),) or not np.isfinite(amounts).all():
        raise UsageError(f"the allocator {method.name} gave no finite amount for each tensor")
    if abs(held(amounts, sizes_of(found)) - budget.sparsity) > 1e-6:
        raise UsageError(f"the allocator {method.name} did not hold the budget of {budget.sparsity:g}")


def _tied(found: Sequence[Candidate], allocation: Allocation) -> Allocation:
    """One amount for the attention and one for the MLP of a block: heads and neurons go through all its tensors."""
    sizes, amounts = sizes_of(found), np.array(allocation.amounts)
    groups: dict[tuple[int | None, str], list[int]] = {}
    for index, item in enumerate(found):
        together = _TOGETHER.match(item.role)
        groups.setdefault((item.block, together[1] if together else item.tensor), []).append(index)
    reasons = list(allocation.reasons)
    for (_, name), members in groups.items():
        mean = held(amounts[members], sizes[members])
        for index in members:
            if abs(amounts[index] - mean) > 1e-12:
                reasons[index] += f"; here the mean over the block's {name}, whose parts go together"
        amounts[members] = mean
    return replace(allocation, amounts=amounts, reasons=tuple(reasons))


def _amounts(
    found: Sequence[Candidate], allocation: Allocation, pattern: Pattern, operator: Operator
) -> tuple[Decision, ...]:
    amounts = np.asarray(allocation.amounts, dtype=np.float64)
    patterns = [str(pattern)] * len(found)
    if pattern.mixed and pattern.group is not None:
        gone = removed_of(amounts, sizes_of(found), pattern.group, _places(found))
        amounts = gone / pattern.group
        patterns = [UNSTRUCTURED if count == 0 else f"{pattern.group - count}:{pattern.group}" for count in gone]
    return tuple(
        Decision(
            item.site,
            noted(
                sparsity=round(float(amount), DIGITS),
                pattern=how,
                rank=None,
                format=None,
                units=operator.work is None,
            ),
            metrics={name: _rounded(item.metrics[name]) for name in allocation.used if name in item.metrics},
            reason=reason,
        )
        for item, amount, how, reason in zip(found, amounts, patterns, allocation.reasons, strict=True)
    )


def _ranked(
    decisions: Sequence[Decision], shapes: Mapping[str, tuple[int, ...]], places: Whole
) -> tuple[Decision, ...]:
    """The same with whole ranks, which save as much."""
    amounts = np.array([item.sparsity for item in decisions], dtype=np.float64)
    ranks = ranks_of(amounts, [shapes[item.tensor] for item in decisions], places)
    return tuple(
        item.but(rank=int(rank), shape=shapes[item.tensor]) for item, rank in zip(decisions, ranks, strict=True)
    )


def _places(found: Sequence[Candidate]) -> Whole:
    """Each candidate's place along depth, whatever the order of the rows."""
    keys = [(-1 if item.block is None else item.block, item.tensor) for item in found]
    places = np.empty(len(found), dtype=np.int64)
    places[sorted(range(len(found)), key=keys.__getitem__)] = np.arange(len(found))
    return places


def _shares(audit: Audit, plan: Plan, asked: float) -> dict[str, Any]:
    everything = sum(row.n_params for row in audit.rows if row.measured)
    reached = plan.taken
    return {
        "requested": asked,
        "achieved": round(reached, DIGITS),
        "parameters": plan.n_params,
        "of_model": round(reached * plan.n_params / max(everything, plan.n_params), 6),
    }


def _said_of_amounts(plan: Plan, sign: str) -> list[str]:
    budget = plan.budget
    blind = f"{plan.allocator} reads neither α nor entropy (by α, {direction_in_words(plan.operator)})"
    notes = [f"sign: {sign or blind}"]
    notes.append(depth_correlation(plan).words)
    if abs(budget["achieved"] - budget["requested"]) > 1e-6:
        whole = "ranks are whole numbers" if operator_of(plan.operator).ranks else "N of M are whole numbers"
        notes.append(f"requested {budget['requested']:.6f}, achieved {budget['achieved']:.6f}: {whole}")
    if plan.allocator != "uniform" and not operator_of(plan.operator).ranks and budget["requested"] < GAINS_FROM:
        notes.append(f"below {GAINS_FROM:.0%}, published gains of uneven allocation over uniform are nil")
    over = sum((decision.sparsity or 0.0) > 1.0 for decision in plan)
    if over:
        notes.append(f"not clamped: {over} entries ask for more than there is, and cannot be applied")
    return notes


def _check_formats(method: Assigner, assignment: Assignment, choices: Choices) -> None:
    """Third parties' assigners are held to what the built-in ones promise."""
    levels = np.asarray(assignment.levels)
    if levels.shape != (len(choices.groups),) or not np.isfinite(choices.bits[np.arange(len(levels)), levels]).all():
        raise UsageError(f"the allocator {method.name} gave no offered format for each tensor")
    if choices.budget is not None and choices.weight(levels) > choices.budget * (1 + 1e-9):
        raise UsageError(f"the allocator {method.name} did not stay within the budget")


def _formats(asked: Asked, assignment: Assignment) -> tuple[Decision, ...]:
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


def _said_of_formats(plan: Plan) -> list[str]:
    asked, reached = plan.budget["requested"], plan.budget["achieved"]
    reads = ASSIGNERS[plan.allocator].needs_alpha
    notes = [*([f"sign: {direction_in_words(plan.operator)}"] if reads else []), depth_words(plan)]
    if reached < asked * (1 - NEAR):
        notes.append(
            f"requested {asked:.6g} bits, achieved {reached:.6g}: whole tensors and these formats come no nearer"
        )
    if plan.allocator != "uniform" and reached > GAINS_TO:
        notes.append(f"above {GAINS_TO} bits, published gains of uneven bits over uniform are nil")
    return [*notes, *_shorter(plan), *_fallen_back(plan)]


def _fallen_back(plan: Plan) -> Iterator[str]:
    """Of each type of llama.cpp whose blocks do not divide the inputs of tensors that have it, what stands in."""
    names: dict[tuple[str, str], list[str]] = {}
    for decision in plan:
        cast = decision.treatment.cast
        if cast is not None and (fitted := cast.fitted(decision.shape).name) != cast.number_format.name:
            names.setdefault((cast.to, fitted), []).append(decision.tensor)
    for (name, fitted), tensors in names.items():
        yield (
            f"{name} is {fitted} in {len(tensors)} tensor{'s' * (len(tensors) != 1)} ({listed(tensors)}), whose inputs "
            "its blocks do not divide, as llama.cpp has it; bits are counted so"
        )


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


_PART = re.compile(r"[#\[].*")  # of a fused tensor `name#part`, of stacked experts `name[e]`


def errors_of(
    study: PrecisionStudy, audit: Audit, found: Iterable[Candidate], formats: Sequence[str], *, relative: bool = False
) -> dict[tuple[str, str], float]:
    """(tensor, format) → ‖Ŵ − W‖²_F, or with `relative` ‖Ŵ − W‖²_F / ‖W‖²_F.

    The study has ‖Ŵ − W‖_F / ‖W‖_F of each matrix, the audit ‖W‖²_F = Σλ. `UsageError` where the study lacks a
    tensor or a format, or is of a model of other sizes.
    """
    missing = [name for name in formats if name not in study.formats]
    if missing:
        fix = f"tailwise precision {audit.model} --formats {','.join(formats)}"
        raise UsageError(f"the study has no {', '.join(missing)}", where=study.model, fix=fix)
    by_module: dict[str, list[LayerStudy]] = {}
    for layer in study:
        by_module.setdefault(_PART.sub("", layer.name), []).append(layer)
    table: dict[tuple[str, str], float] = {}
    for item in found:
        layers = by_module.get(_PART.sub("", item.matrix), [])
        if sum(layer.numel for layer in layers) != item.n_params:
            fix = "study and audit the same model"
            raise UsageError(f"the study does not hold {item.tensor}", where=study.model, fix=fix)
        for name in formats:
            table[item.tensor, name] = _error(layers, audit, name, relative)
    return table


def _error(layers: Sequence[LayerStudy], audit: Audit, name: str, relative: bool) -> float:
    squares = [float(audit[layer.name].spectrum.eigenvalues.sum()) for layer in layers]
    total = 0.0
    for layer, square in zip(layers, squares, strict=True):
        error = layer.readings[name].relative_error if name in layer.readings else None
        if error is None:
            raise UsageError(f"the study could not measure {layer.name} in {name}", fix="leave the format or it out")
        total += error * error * square
    return total / (sum(squares) or 1.0) if relative else total
