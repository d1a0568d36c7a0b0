"""The model card of a compressed model: what was done to it, and the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import version

from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.applied import Applied, Reached

PLAN_FILE = "tailwise_plan.json"


def card(plan: Plan, applied: Applied, source: str) -> str:
    """README.md."""
    return "\n".join(_lines(plan, applied, source)) + "\n"


def _lines(plan: Plan, applied: Applied, source: str) -> Iterator[str]:
    done = "quantized" if applied.in_bits else "pruned"
    yield from ("---", "tags:", "- tailwise", f"- {done}", f"base_model: {json.dumps(source)}", "---", "")
    yield f"# {source.rstrip('/').rsplit('/', 1)[-1]}, {done} by {plan.operator}"
    yield ""
    yield from _what(plan, applied, source)
    yield ""
    yield f"- operator: {plan.operator}; allocation: {plan.allocator or 'by hand'}"
    for name, value in sorted((applied.settings or {}).items()):
        yield f"- {name}: {value}"
    yield f"- [{PLAN_FILE}]({PLAN_FILE}) is the plan, with the reason for each entry"
    yield ""
    yield from _how_stored(plan, applied)
    yield ""
    yield from _table(applied)
    for note in (*plan.notes, *applied.notes):
        yield from ("", f"- {note}")


def _what(plan: Plan, applied: Applied, source: str) -> Iterator[str]:
    made = f"Made from `{source}` by tailwise {version('tailwise')}: "
    if not applied.in_bits:
        yield (
            f"{made}{applied.achieved:.2%} of the {plan.n_params:,} parameters that the plan names went "
            f"(requested: {applied.requested:.2%})."
        )
        return
    yield (
        f"{made}the {plan.n_params:,} parameters that the plan names hold values of {applied.achieved:.4f} bits per "
        f"weight, scales counted (by the plan: {applied.requested:.4f})."
    )
    if applied.pruned is not None:
        yield f"Before that, {applied.pruned.achieved:.4%} of the plan's pruned tensors were set to zero."


def _how_stored(plan: Plan, applied: Applied) -> Iterator[str]:
    if applied.packed is not None and applied.sizes is not None:
        before, after = applied.sizes
        yield f"The weights are packed, as {applied.packed} lays them out: {after:,} bytes, and {before:,} before."
        yield applied.loads
    elif applied.in_bits:
        yield "The values are stored dequantized, in the dtype of the source: the file is as large as before. It"
        yield "measures what the formats cost, and is not what a server would load."
    elif applied.smaller:
        yield "The parameters that went are not stored: the model is smaller, and its dense arithmetic is less."
    elif OPERATORS[plan.operator].ranks:
        yield "Each matrix is stored dense, as the product of its factors; the file is as large as before."
    else:
        yield "The zeros are stored: the file is as large as before, and dense arithmetic is no faster for them."


def _table(applied: Applied) -> Iterator[str]:
    if applied.in_bits:
        yield "| tensor | format | bits per weight | relative error |"
        yield "| --- | --- | ---: | ---: |"
        for item in applied.tensors:
            yield f"| `{item.tensor}` | {item.how} | {item.achieved:.4f} | {item.relative_error or 0.0:.5f} |"
        return
    yield "| tensor | requested | achieved | how |"
    yield "| --- | ---: | ---: | --- |"
    for item in applied.tensors:
        yield f"| `{item.tensor}` | {item.requested:.4f} | {item.achieved:.4f} | {how_in_words(item)} |"


def how_in_words(item: Reached) -> str:
    """The last column of tables of tensors."""
    return item.pattern if item.rank is None else f"rank {item.rank}"
