"""The model card of a compressed model: what was done to it, and the plan."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from typing import Any

from tailwise.compression.applying.applied import Applied, Reached
from tailwise.compression.plans.plan import Plan

PLAN_FILE = "tailwise_plan.json"


def card(plan: Plan, applied: Applied, source: str) -> str:
    """README.md."""
    return "\n".join(_lines(plan, applied, source)) + "\n"


def head(plan: Plan, source: str, done: str) -> Iterator[str]:
    """The front matter and the title; `done` is what was done, in one word."""
    yield from ("---", "tags:", "- tailwise", f"- {done}", f"base_model: {json.dumps(source)}", "---", "")
    yield f"# {source.rstrip('/').rsplit('/', 1)[-1]}, {done} by {plan.operator}"
    yield ""


def how(plan: Plan, settings: Mapping[str, Any] | None) -> Iterator[str]:
    """The operator and its settings, and where the plan is."""
    yield f"- operator: {plan.operator}; allocation: {plan.allocator or 'by hand'}"
    for name, value in sorted((settings or {}).items()):
        yield f"- {name}: {value}"
    yield f"- [{PLAN_FILE}]({PLAN_FILE}) is the plan, with the reason for each entry"


def _lines(plan: Plan, applied: Applied, source: str) -> Iterator[str]:
    yield from head(plan, source, "pruned")
    yield (
        f"Made from `{source}` by tailwise {version('tailwise')}: {applied.reached:.2%} of the "
        f"{plan.n_params:,} parameters that the plan names went (asked for: {applied.asked:.2%})."
    )
    yield ""
    yield from how(plan, applied.settings)
    yield ""
    if applied.smaller:
        yield "The parameters that went are not stored: the model is smaller, and its dense arithmetic is less."
    elif plan.operator == "low_rank":
        yield "Each matrix is stored dense, as the product of its factors; the file is as large as before."
    else:
        yield "The zeros are stored: the file is as large as before, and dense arithmetic is no faster for them."
    yield ""
    yield "| tensor | asked | reached | how |"
    yield "| --- | ---: | ---: | --- |"
    for item in applied.tensors:
        yield f"| `{item.tensor}` | {item.asked:.4f} | {item.reached:.4f} | {_how(item)} |"
    for note in (*plan.notes, *applied.notes):
        yield from ("", f"- {note}")


def _how(item: Reached) -> str:
    return item.pattern if item.rank is None else f"rank {item.rank}"
