"""`plan_prune()`: an audit and a budget to a plan."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from tailwise.audits.audit import Audit
from tailwise.compression.choosing.amounts import ALLOCATORS, Allocation, Allocator, Settings, sizes_of
from tailwise.compression.operators.operator import Operator
from tailwise.compression.operators.table import direction_in_words, operator_of
from tailwise.compression.plans.budget import Budget, held
from tailwise.compression.plans.candidates import Candidate, Choice, audited_part, candidates, estimator_for
from tailwise.compression.plans.correlation import depth_correlation
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.patterns import UNSTRUCTURED, Pattern, parse_pattern
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.rounding import Whole, ranks_of, removed_of
from tailwise.compression.plans.treatment import noted
from tailwise.errors import UsageError

#: Below this, published gains of uneven allocation on autoregressive models are nil.
GAINS_FROM = 0.6
DIGITS = 9  # of amounts: fine enough for a budget held to 1e-6, short enough to read
_TOGETHER = re.compile(r"(attn|mlp|shared|expert)(?:_|$)")


@dataclass(frozen=True)
class Request:
    """What is asked of a pruning plan. `settings` are fields of `Settings` that the user gave, by name."""

    sparsity: float | None = None
    allocator: str = "uniform"
    operator: str = "magnitude"
    pattern: str = UNSTRUCTURED
    choice: Choice = field(default_factory=Choice)
    clamp: bool = True
    estimator: str | None = None  # of α; None: AlphaPruning's for this kind of model
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        # A wrong request is told before a model is read for it.
        operator_of(self.operator)
        Budget(_sparsity(self, _pattern(self)), self.clamp)
        _settings(ALLOCATORS[self.allocator], self)


def plan_prune(audit: Audit, request: Request) -> Plan:
    """Say what to remove of which tensor.

    Reads the audit alone; α is fitted to its spectra by AlphaPruning's estimator. Raises `UsageError` where what is
    asked cannot be.
    """
    operator = operator_of(request.operator)
    pattern = _pattern(request)
    budget = Budget(_sparsity(request, pattern), request.clamp)
    method = ALLOCATORS[request.allocator]
    settings = _settings(method, request)
    if request.estimator is not None and not method.needs_alpha:
        raise UsageError(f"{method.name} looks at no α", fix="leave --estimator out")
    estimator = (request.estimator or estimator_for(audit)) if method.needs_alpha else None
    found, notes = candidates(audit, request.choice, estimator)
    found, more = _fitting(found, pattern, operator)
    allocation = method(found, budget, settings)
    _check(method, allocation, found, budget)
    if operator.work is None:
        allocation = _tied(found, allocation)
    decisions = _decisions(found, allocation, pattern, operator)
    plan = Plan(
        kind="prune",
        operator=operator.name,
        allocator=request.allocator,
        model=audit.model,
        fingerprint=audit.provenance.fingerprint,
        budget={},
        decisions=decisions,
        settings=_recorded(request, allocation, estimator, audited_part(audit)),
    )
    budgets = _budget(audit, plan, budget.sparsity)
    said = _said(plan, budgets, allocation.sign)
    return replace(plan, budget=budgets, notes=(*said, *allocation.notes, *notes, *more))


def _pattern(request: Request) -> Pattern:
    pattern = parse_pattern(request.pattern)
    if pattern.group is not None and not operator_of(request.operator).patterns:
        raise UsageError(f"{request.operator} has no pattern", fix="leave --pattern out, or take another operator")
    if pattern.group is not None and not request.clamp:
        raise UsageError("a pattern holds at most its group", fix="leave --no-clamp out")
    return pattern


def _sparsity(request: Request, pattern: Pattern) -> float:
    if pattern.fixed is None:
        if request.sparsity is None:
            raise UsageError("how much is to go?", fix="give --sparsity, e.g. 0.7")
        return request.sparsity
    if request.sparsity is not None and abs(request.sparsity - pattern.fixed) > 1e-9:
        raise UsageError(
            f"{pattern} is a sparsity of {pattern.fixed:g} everywhere, not {request.sparsity:g}",
            fix=f"leave --sparsity out, or give --pattern N:{pattern.group} for a mix that reaches it",
        )
    if request.allocator != "uniform":
        raise UsageError(
            f"{pattern} leaves {request.allocator} nothing to choose",
            fix=f"take --pattern N:{pattern.group}, or --allocator uniform",
        )
    return pattern.fixed


def _settings(method: Allocator, request: Request) -> Settings:
    return method.settings(Settings, request.settings, operator=request.operator)


def _fitting(
    found: tuple[Candidate, ...], pattern: Pattern, operator: Operator
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """The candidates that the pattern and the operator can be done to, and a note on the others."""
    if pattern.group is not None:
        kept = tuple(item for item in found if not item.shape or item.shape[1] % pattern.group == 0)
        why = f"their input axis is no multiple of {pattern.group}"
    elif operator.ranks:
        kept = tuple(item for item in found if item.shape and item.kind == "dense")
        why = "low rank takes tensors that hold one matrix, and no convolutions"
    else:
        return found, ()
    if not kept:
        raise UsageError(f"no tensor fits: {why}", fix="take another --pattern or --operator")
    left = len(found) - len(kept)
    return kept, (f"left as they are, {left} tensors: {why}",) if left else ()


def _check(method: Allocator, allocation: Allocation, found: Sequence[Candidate], budget: Budget) -> None:
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


def _decisions(
    found: Sequence[Candidate], allocation: Allocation, pattern: Pattern, operator: Operator
) -> tuple[Decision, ...]:
    amounts = np.asarray(allocation.amounts, dtype=np.float64)
    patterns, ranks = [str(pattern)] * len(found), [0] * len(found)
    if pattern.mixed and pattern.group is not None:
        gone = removed_of(amounts, sizes_of(found), pattern.group, _places(found))
        amounts = gone / pattern.group
        patterns = [UNSTRUCTURED if count == 0 else f"{pattern.group - count}:{pattern.group}" for count in gone]
    elif operator.ranks:
        ranks = [int(rank) for rank in ranks_of(amounts, [item.shape for item in found], _places(found))]
    return tuple(
        Decision(
            item.site,
            noted(
                sparsity=round(float(amount), DIGITS),
                pattern=how,
                rank=rank or None,
                format=None,
                units=operator.work is None,
            ),
            metrics={name: _rounded(item.metrics[name]) for name in allocation.used if name in item.metrics},
            reason=reason,
        )
        for item, amount, how, rank, reason in zip(found, amounts, patterns, ranks, allocation.reasons, strict=True)
    )


def _places(found: Sequence[Candidate]) -> Whole:
    """Each candidate's place along depth, whatever the order of the rows."""
    keys = [(-1 if item.block is None else item.block, item.tensor) for item in found]
    places = np.empty(len(found), dtype=np.int64)
    places[sorted(range(len(found)), key=keys.__getitem__)] = np.arange(len(found))
    return places


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


def _recorded(
    request: Request, allocation: Allocation, estimator: str | None, audited: Mapping[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {**allocation.settings, "pattern": request.pattern}
    if estimator is not None:
        found["estimator"] = estimator
    if not request.clamp:
        found["clamp"] = False
    if audited:
        found["audited"] = dict(audited)
    chosen = {"roles": list(request.choice.roles), "layers": request.choice.layers, "also": list(request.choice.also)}
    return found | {name: value for name, value in chosen.items() if value}


def _budget(audit: Audit, plan: Plan, asked: float) -> dict[str, Any]:
    everything = sum(row.n_params for row in audit.rows if row.measured)
    reached = plan.taken
    return {
        "asked": asked,
        "reached": round(reached, DIGITS),
        "parameters": plan.n_params,
        "of_model": round(reached * plan.n_params / max(everything, plan.n_params), 6),
    }


def _said(plan: Plan, budget: Mapping[str, Any], sign: str) -> list[str]:
    blind = f"{plan.allocator} reads neither α nor entropy (by α, {direction_in_words(plan.operator)})"
    notes = [f"sign: {sign or blind}"]
    notes.append(depth_correlation(plan).words)
    if abs(budget["reached"] - budget["asked"]) > 1e-6:
        whole = "ranks are whole numbers" if operator_of(plan.operator).ranks else "N of M are whole numbers"
        notes.append(f"asked for {budget['asked']:.6f}, reached {budget['reached']:.6f}: {whole}")
    if plan.allocator != "uniform" and not operator_of(plan.operator).ranks and budget["asked"] < GAINS_FROM:
        notes.append(f"below {GAINS_FROM:.0%}, published gains of uneven allocation over uniform are nil")
    over = sum((decision.sparsity or 0.0) > 1.0 for decision in plan)
    if over:
        notes.append(f"not clamped: {over} entries ask for more than there is, and cannot be applied")
    return notes
