"""Recipes of llm-compressor."""

from __future__ import annotations

import re
from importlib import import_module
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.patterns import parse_pattern
from tailwise.compression.plan import Decision, Plan
from tailwise.errors import UsageError

_MODIFIERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
_HEAD = (
    "# Written by tailwise for llm-compressor: one modifier for each distinct amount.\n"
    "# mask_structure names what is removed of each group: 1:4 here is 3:4 in the plan.\n"
)


@exporter("llmcompressor", source="llm-compressor 0.14, `oneshot(recipe=…)`", suffixes=(".yaml", ".yml"))
def recipe(plan: Plan) -> Files:
    """A recipe in YAML: Wanda or SparseGPT modifiers with the sparsity of each group of layers.

    Several modifiers with `re:` targets say it, as Wanda's own allocation (`owl`) does not run in 0.14. Entries that
    ask for nothing are left out.
    """
    yaml = import_module("yaml")
    if plan.operator not in _MODIFIERS:
        raise UsageError(
            f"llm-compressor has no one-shot modifier for {plan.operator}",
            fix=f"plan with {' or '.join(_MODIFIERS)}",
        )
    groups: dict[tuple[float, str], list[Decision]] = {}
    for decision in plan:
        if decision.sparsity:
            groups.setdefault((decision.sparsity, decision.pattern), []).append(decision)
    if not groups:
        raise UsageError("the plan takes nothing away", fix="plan with a --sparsity above 0")
    stage = {
        f"pruning_{number}_modifiers": {_MODIFIERS[plan.operator]: _modifier(key, members)}
        for number, (key, members) in enumerate(sorted(groups.items()))
    }
    text = yaml.safe_dump({"pruning_stage": stage}, sort_keys=False, width=10_000)
    return {".yaml": (_HEAD + text).encode()}


def _modifier(key: tuple[float, str], members: list[Decision]) -> dict[str, Any]:
    sparsity, name = key
    pattern = parse_pattern(name, mixed=False)
    removed = "0:0"
    if pattern.kept is not None and pattern.group is not None:
        removed = f"{pattern.group - pattern.kept}:{pattern.group}"
    return {"sparsity": sparsity, "mask_structure": removed, "targets": [_target(decision) for decision in members]}


def _target(decision: Decision) -> str:
    """Exactly one module: names of blocks 1 and 11 begin alike."""
    if not decision.tensor.endswith(".weight") or len(decision.shape) != 2:
        raise UsageError(
            "llm-compressor prunes linear layers by module, and this is none",
            where=decision.tensor,
            fix="take the entry out of the plan",
        )
    return f"re:^{re.escape(decision.tensor.removesuffix('.weight'))}$"
