"""What makes a plan wrong, and what makes it not fit a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from tailwise.compression.operators.operator import Operator
from tailwise.compression.operators.registered import OPERATORS, operators_that
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.combined import part_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.entries import BOTH, PARTS, Entries
from tailwise.compression.plans.fusing import fused, mixture_of
from tailwise.compression.plans.patterns import BLOCK, EXPERTS
from tailwise.compression.plans.taking import Drop, Sparsify
from tailwise.compression.plans.treatment import is_number, is_whole
from tailwise.core.errors import UsageError, near_names

_SHOWN = 5
_SUGGESTED = 20  # names that are told to be missing with what is like them
_MOST_PARAMETERS = 1 << 63


def validate(plan: Entries) -> tuple[str, ...]:
    """`UsageError` with what is wrong where the plan cannot be applied; warnings where an edit is only noticed."""
    if plan.is_both:
        return tuple(f"{kind}: {warning}" for kind in PARTS for warning in validate(part_of(plan, kind)))
    errors = [*_head(plan)]
    counts = Counter(decision.tensor for decision in plan)
    errors += [f"{tensor}: is there {count} times" for tensor, count in counts.items() if count > 1]
    for decision in plan if plan.operator in OPERATORS else ():
        errors += [f"{decision.tensor}: {error}" for error in _entry(decision, plan)]
    if not errors:  # of entries that are right by themselves
        errors += [*_blocks(plan), *_experts(plan)]
    if errors:
        more = f"\n  … and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        fix = "plan again without --no-clamp" if plan.settings.get("clamp") is False else "correct the entries named"
        raise UsageError("the plan cannot be applied:\n  " + "\n  ".join(errors[:_SHOWN]) + more, fix=fix)
    return tuple(_warnings(plan))


def _head(plan: Entries) -> Iterator[str]:
    if plan.kind not in ("prune", "quantize"):
        yield f"kind is {plan.kind!r}; it is prune, quantize or {BOTH}"
        return
    known = tuple(operators_that(plan.kind))
    if plan.operator not in known:
        near = near_names(plan.operator, known, 1)
        yield f"there is no operator {plan.operator!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(known))
    if not plan.decisions:
        yield "it has no entries"
    for name in ("requested", "achieved"):
        value = plan.budget.get(name)
        if value is not None and not is_number(value):
            yield f"the budget's {name} is {value!r}; it is a number"


def _entry(decision: Decision, plan: Entries) -> Iterator[str]:
    if not is_whole(decision.n_params) or not 1 <= decision.n_params < _MOST_PARAMETERS:
        yield f"parameters is {decision.n_params!r}; it is a count"
    if decision.block is not None and not is_whole(decision.block):
        yield f"block is {decision.block!r}; it is a number or null"
    for name in ("matrix", "role", "reason"):
        if not isinstance(getattr(decision, name), str):
            yield f"{name} is {getattr(decision, name)!r}; it is text"
    for name, value in decision.metrics.items():
        if value is not None and not is_number(value):
            yield f"the metric {name} is {value!r}; it is a number or null"
    if not all(is_whole(size) and size > 0 for size in decision.shape):
        yield f"shape is {list(decision.shape)}; it is a list of counts, [rows, cols]"
        return
    treatment, operator = decision.treatment, OPERATORS[plan.operator]
    if plan.quantizes:
        yield from _of_formats(decision, operator)
        return
    if treatment.cast is not None:
        yield "has a format, which a plan to prune does not use"
    taking = next((part for part in treatment.parts if part.unit == "parameters"), Sparsify(None))
    yield from taking.check(decision.site, operator)


def _of_formats(decision: Decision, operator: Operator) -> Iterator[str]:
    """A plan to quantize has formats, and nothing else."""
    cast = decision.treatment.cast
    if cast is None or not isinstance(cast.to, str) or not cast.to:
        yield "has no format"
        return
    for name in ("sparsity", "rank"):
        if getattr(decision, name) is not None:
            yield f"has a {name}, which a plan to quantize does not use"
    yield from cast.check(decision.site, operator)


def _blocks(plan: Entries) -> Iterator[str]:
    """A block goes with all its entries, and one block stays."""
    gone = {decision.block for decision in plan if isinstance(decision.treatment, Drop) and decision.block is not None}
    for decision in plan:
        if decision.block in gone and not isinstance(decision.treatment, Drop):
            yield f"{decision.tensor}: the other entries of block {decision.block} go with it; write pattern: {BLOCK}"
    if gone and gone == {decision.block for decision in plan if decision.block is not None}:
        yield "every block that it names would go; at least one must stay"


def _experts(plan: Entries) -> Iterator[str]:
    """An expert goes with all its entries, and out of every stack of its mixture alike."""
    experts: dict[str, list[Decision]] = {}
    for decision in plan:
        if decision.role.startswith("expert_"):
            experts.setdefault(mixture_of(decision.tensor), []).append(decision)
    for name, members in experts.items():
        for decision in members:
            if decision.treatment.whole != members[0].treatment.whole or decision.experts != members[0].experts:
                yield (
                    f"{decision.tensor}: {name} goes as a whole or not at all; give all its entries the same "
                    f"pattern: {EXPERTS} and list of experts"
                )
                break


def _warnings(plan: Entries) -> Iterator[str]:
    if plan.quantizes:
        yield from _warnings_of_formats(plan)
        return
    for decision in plan:
        taken = decision.treatment.taken(decision.site)
        if decision.rank is not None and abs(taken - (decision.sparsity or 0.0)) > _step(decision):
            yield (
                f"{decision.tensor}: rank {decision.rank} takes {taken:.4f}, and its sparsity says "
                f"{decision.sparsity:.4f}; the rank holds"
            )
    asked = plan.budget.get("requested")
    if asked is None or not is_number(asked):
        return
    reached, stated = plan.taken, plan.budget.get("achieved")
    expected = stated if stated is not None and is_number(stated) else asked
    if abs(reached - expected) > 1e-6:
        yield f"the entries reach {reached:.6f} and no longer {expected:.6f} (requested: {asked:g})"


def _warnings_of_formats(plan: Entries) -> Iterator[str]:
    for name, members in fused(plan.decisions, per_expert=plan.settings.get("per_expert") is True).items():
        names = sorted({cast.number_format.name for item in members if (cast := item.treatment.cast) is not None})
        if len(names) > 1:
            yield f"{name}: {', '.join(names)}; servers hold them in one matrix, and take one format"
    reached, stated = mean_bits(plan), plan.budget.get("achieved")
    if is_number(stated) and abs(reached - float(stated or 0.0)) > 1e-6:
        asked = plan.budget.get("requested")
        yield f"the entries take {reached:.6f} bits per weight and no longer {stated:.6f} (requested: {asked})"


def _step(decision: Decision) -> float:
    """What one rank more or less changes, and a little."""
    rows, cols = decision.shape[-2:] if len(decision.shape) in (2, 3) else (1, 1)
    return 1.001 * (rows + cols) / (rows * cols)


def misfits(plan: Entries, sizes: Mapping[str, int], fingerprint: str | None = None) -> tuple[str, ...]:
    """Why the plan does not fit a model with tensors of these sizes; empty where it does."""
    troubles: list[str] = []
    if fingerprint is not None and plan.fingerprint and fingerprint != plan.fingerprint:
        troubles.append(
            f"the weights are others than those of the plan's audit ({plan.fingerprint[:12]}… against "
            f"{fingerprint[:12]}…), or another selection of them was audited"
        )
    for decision in plan:
        if decision.tensor not in sizes:
            near = near_names(decision.tensor, sizes, 1, 0.8) if len(troubles) < _SUGGESTED else []
            troubles.append(f"there is no tensor {decision.tensor}" + (f"; did you mean {near[0]}?" if near else ""))
        elif sizes[decision.tensor] != decision.n_params:
            troubles.append(f"{decision.tensor} has {sizes[decision.tensor]} parameters, not {decision.n_params}")
    return tuple(troubles)
