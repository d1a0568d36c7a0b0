"""What makes a plan wrong, and what makes it not fit a model."""

from __future__ import annotations

import difflib
import sys
from collections import Counter
from collections.abc import Iterator, Mapping

from tailwise.compression.operators.table import operators_that
from tailwise.compression.plans.bits import mean_bits
from tailwise.compression.plans.budget import MOST
from tailwise.compression.plans.fusing import fused
from tailwise.compression.plans.patterns import parse_pattern
from tailwise.compression.plans.plan import BLOCK, BOTH, PARTS, UNSTRUCTURED, Decision, Plan
from tailwise.compression.plans.rounding import removed_by, removed_share
from tailwise.errors import UsageError
from tailwise.number_formats.formats import parse_format

_SHOWN = 5
_MOST_PARAMETERS = 1 << 63


def validate(plan: Plan) -> tuple[str, ...]:
    """`UsageError` with what is wrong where the plan cannot be applied; warnings where an edit is only noticed."""
    if plan.kind == BOTH:
        return tuple(f"{kind}: {warning}" for kind in PARTS for warning in validate(plan.part(kind)))
    errors = [*_head(plan)]
    counts = Counter(decision.tensor for decision in plan)
    errors += [f"{tensor}: is there {count} times" for tensor, count in counts.items() if count > 1]
    for decision in plan:
        errors += [f"{decision.tensor}: {error}" for error in _entry(decision, plan)]
    if not errors:  # of entries that are right by themselves
        errors += _blocks(plan)
    if errors:
        more = f"\n  … and {len(errors) - _SHOWN} more" if len(errors) > _SHOWN else ""
        fix = "plan again without --no-clamp" if plan.settings.get("clamp") is False else "correct the entries named"
        raise UsageError("the plan cannot be applied:\n  " + "\n  ".join(errors[:_SHOWN]) + more, fix=fix)
    return tuple(_warnings(plan))


def _head(plan: Plan) -> Iterator[str]:
    if plan.kind not in ("prune", "quantize"):
        yield f"kind is {plan.kind!r}; it is prune, quantize or {BOTH}"
        return
    known = tuple(operators_that(plan.kind))
    if plan.operator not in known:
        near = difflib.get_close_matches(plan.operator, known, n=1)
        yield f"there is no operator {plan.operator!r}; " + (f"did you mean {near[0]}?" if near else ", ".join(known))
    if not plan.decisions:
        yield "it has no entries"
    for name in ("asked", "reached"):
        value = plan.budget.get(name)
        if value is not None and not _number(value):
            yield f"the budget's {name} is {value!r}; it is a number"


def _entry(decision: Decision, plan: Plan) -> Iterator[str]:
    if not _whole(decision.n_params) or not 1 <= decision.n_params < _MOST_PARAMETERS:
        yield f"parameters is {decision.n_params!r}; it is a count"
    if decision.block is not None and not _whole(decision.block):
        yield f"block is {decision.block!r}; it is a number or null"
    for name in ("matrix", "role", "reason"):
        if not isinstance(getattr(decision, name), str):
            yield f"{name} is {getattr(decision, name)!r}; it is text"
    for name, value in decision.metrics.items():
        if value is not None and not _number(value):
            yield f"the metric {name} is {value!r}; it is a number or null"
    if not all(_whole(size) and size > 0 for size in decision.shape):
        yield f"shape is {list(decision.shape)}; it is a list of counts, [rows, cols]"
    elif plan.kind == "quantize":
        yield from _format(decision)
    else:
        if decision.format is not None:
            yield "has a format, which a plan to prune does not use"
        yield from _amount(decision, plan.operator)


def _format(decision: Decision) -> Iterator[str]:
    if not isinstance(decision.format, str) or not decision.format:
        yield "has no format"
        return
    for name in ("sparsity", "rank"):
        if getattr(decision, name) is not None:
            yield f"has a {name}, which a plan to quantize does not use"
    try:
        parse_format(decision.format)
    except UsageError as error:
        yield f"{error.what}; {error.fix}"


def _amount(decision: Decision, operator: str) -> Iterator[str]:
    amount = decision.sparsity
    if amount is None or not _number(amount):
        yield f"sparsity is {amount!r}; it is a fraction from 0 to {MOST}"
        return
    if decision.pattern == BLOCK:
        yield from _whole_block(decision, operator)
        return
    if not 0.0 <= amount <= MOST:
        hint = f" (write {amount / 100:g} for {amount:g} %)" if 2.0 <= amount <= 100.0 * MOST else ""
        yield f"sparsity is {amount:g}; it is a fraction from 0 to {MOST}{hint}"
    yield from _pattern(decision, operator)
    if operator == "low_rank":
        most = min(decision.shape) if len(decision.shape) == 2 else None
        if not _whole(decision.rank) or (decision.rank or 0) < 1 or (most is not None and (decision.rank or 0) > most):
            yield f"rank is {decision.rank!r}; it is a whole number from 1" + (f" to {most}" if most else "")
    elif decision.rank is not None:
        yield f"has a rank, which {operator} does not use"


def _whole_block(decision: Decision, operator: str) -> Iterator[str]:
    if operator != "structured":
        yield f"{operator} does not take whole blocks; operator: structured does"
    if decision.block is None:
        yield "is in no block that could go as a whole"
    if decision.sparsity != 1.0:
        yield f"sparsity is {decision.sparsity:g}; with the pattern {BLOCK} it is 1"


def _blocks(plan: Plan) -> Iterator[str]:
    """A block goes with all its entries, and one block stays."""
    gone = {decision.block for decision in plan if decision.pattern == BLOCK and decision.block is not None}
    for decision in plan:
        if decision.block in gone and decision.pattern != BLOCK:
            yield f"{decision.tensor}: the other entries of block {decision.block} go with it; write pattern: {BLOCK}"
    if gone and gone == {decision.block for decision in plan if decision.block is not None}:
        yield "every block that it names would go; at least one must stay"


def _pattern(decision: Decision, operator: str) -> Iterator[str]:
    try:
        pattern = parse_pattern(decision.pattern, mixed=False) if isinstance(decision.pattern, str) else None
    except UsageError as error:
        yield f"{error.what}; {error.fix}"
        return
    if pattern is None:
        yield f"pattern is {decision.pattern!r}; write it in quotes, like '2:4'"
    elif pattern.fixed is not None and operator in ("low_rank", "structured"):
        yield f"{operator} has no pattern; write {UNSTRUCTURED}"
    elif pattern.fixed is not None and abs(pattern.fixed - (decision.sparsity or 0.0)) > 1e-6:
        yield f"{decision.pattern} is a sparsity of {pattern.fixed:g}, not {decision.sparsity:g}"


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: object) -> bool:
    # Compared and not converted: whole numbers in a file may be larger than any float.
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _warnings(plan: Plan) -> Iterator[str]:
    if plan.kind == "quantize":
        yield from _warnings_of_formats(plan)
        return
    for decision in plan:
        taken = removed_by(decision)
        if decision.rank is not None and abs(taken - (decision.sparsity or 0.0)) > _step(decision):
            yield (
                f"{decision.tensor}: rank {decision.rank} takes {taken:.4f}, and its sparsity says "
                f"{decision.sparsity:.4f}; the rank holds"
            )
    asked = plan.budget.get("asked")
    if asked is None or not _number(asked):
        return
    reached, stated = removed_share(plan), plan.budget.get("reached")
    expected = stated if stated is not None and _number(stated) else asked
    if abs(reached - expected) > 1e-6:
        yield f"the entries reach {reached:.6f} and no longer {expected:.6f} (asked for: {asked:g})"


def _warnings_of_formats(plan: Plan) -> Iterator[str]:
    for name, members in fused(plan.decisions, per_expert=plan.settings.get("per_expert") is True).items():
        names = sorted({parse_format(decision.format or "").name for decision in members})
        if len(names) > 1:
            yield f"{name}: {', '.join(names)}; servers hold them in one matrix, and take one format"
    reached, stated = mean_bits(plan), plan.budget.get("reached")
    if _number(stated) and abs(reached - float(stated or 0.0)) > 1e-6:
        asked = plan.budget.get("asked")
        yield f"the entries take {reached:.6f} bits per weight and no longer {stated:.6f} (asked for: {asked})"


def _step(decision: Decision) -> float:
    """What one rank more or less changes, and a little."""
    rows, cols = decision.shape if len(decision.shape) == 2 else (1, 1)
    return 1.001 * (rows + cols) / (rows * cols)


def misfits(plan: Plan, sizes: Mapping[str, int], fingerprint: str | None = None) -> tuple[str, ...]:
    """Why the plan does not fit a model with tensors of these sizes; empty where it does."""
    found: list[str] = []
    if fingerprint is not None and plan.fingerprint and fingerprint != plan.fingerprint:
        found.append(
            f"the weights are others than those of the plan's audit ({plan.fingerprint[:12]}… against "
            f"{fingerprint[:12]}…), or another selection of them was audited"
        )
    for decision in plan:
        if decision.tensor not in sizes:
            near = difflib.get_close_matches(decision.tensor, sizes, n=1, cutoff=0.8)
            found.append(f"there is no tensor {decision.tensor}" + (f"; did you mean {near[0]}?" if near else ""))
        elif sizes[decision.tensor] != decision.n_params:
            found.append(f"{decision.tensor} has {sizes[decision.tensor]} parameters, not {decision.n_params}")
    return tuple(found)
