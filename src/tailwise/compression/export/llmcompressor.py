"""Recipes of llm-compressor."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from tailwise.compression.export.compressed_tensors import schemes
from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import exactly
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.patterns import parse_pattern
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError

_PRUNERS = {"wanda": "WandaPruningModifier", "sparsegpt": "SparseGPTModifier"}
_QUANTIZERS = {"rtn": "QuantizationModifier", "gptq": "GPTQModifier"}
_PRUNING_HEAD = (
    "# Written by tailwise for llm-compressor: one modifier for each distinct amount.\n"
    "# mask_structure names what is removed of each group: 1:4 here is 3:4 in the plan.\n"
)
_QUANTIZING_HEAD = (
    "# Written by tailwise for llm-compressor: one config group for each format, weights only.\n"
    "# What is in no group stays as it is.\n"
)


@exporter(
    "llmcompressor",
    source="llm-compressor 0.14, `oneshot(recipe=…)`",
    suffixes=(".yaml", ".yml"),
    kinds=("prune", "quantize"),
)
def recipe(plan: Plan) -> Files:
    """A recipe in YAML: Wanda or SparseGPT modifiers, or config groups to quantize to nearest or by GPTQ.

    Pruning: several modifiers with `re:` targets, as Wanda's own allocation (`owl`) does not run in 0.14. Entries
    that ask for nothing are left out.
    """
    yaml = import_module("yaml")
    head, stage = (
        (_PRUNING_HEAD, {"pruning_stage": _pruning(plan)})
        if not plan.quantizes
        else (_QUANTIZING_HEAD, {"quantization_stage": _quantizing(plan)})
    )
    text = yaml.safe_dump(stage, sort_keys=False, width=10_000)
    return {".yaml": (head + text).encode()}


def _quantizing(plan: Plan) -> dict[str, Any]:
    groups, unquantized = schemes(plan, "llm-compressor")
    # How weights are packed is chosen when the model is saved.
    config_groups = {name: {key: group[key] for key in ("targets", "weights")} for name, group in groups.items()}
    modifier: dict[str, Any] = {"config_groups": config_groups, "ignore": unquantized}
    if plan.operator == "gptq":
        # Left out, it would be "static".
        modifier = {"actorder": "static" if plan.settings.get("act_order") is True else None, **modifier}
    return {"quantization_modifiers": {_QUANTIZERS[plan.operator]: modifier}}


def _pruning(plan: Plan) -> dict[str, Any]:
    if plan.operator not in _PRUNERS:
        raise UsageError(
            f"llm-compressor has no one-shot modifier for {plan.operator}",
            fix=f"plan with {' or '.join(_PRUNERS)}",
        )
    groups: dict[tuple[float, str], list[Decision]] = {}
    for decision in plan:
        if decision.sparsity:
            groups.setdefault((decision.sparsity, decision.pattern), []).append(decision)
    wrong = [item.tensor for item in plan if item.sparsity and (item.tensor == _module(item) or len(item.shape) != 2)]
    if wrong:
        raise UsageError(
            f"llm-compressor prunes linear layers by module, and these are none: {listed(wrong)}",
            fix="take these entries out of the plan",
        )
    if not groups:
        raise UsageError("the plan takes nothing away", fix="plan with a --sparsity above 0")
    return {
        f"pruning_{number}_modifiers": {_PRUNERS[plan.operator]: _modifier(key, members)}
        for number, (key, members) in enumerate(sorted(groups.items()))
    }


def _modifier(key: tuple[float, str], members: list[Decision]) -> dict[str, Any]:
    sparsity, name = key
    pattern = parse_pattern(name, mixed=False)
    removed = "0:0"
    if pattern.kept is not None and pattern.group is not None:
        removed = f"{pattern.group - pattern.kept}:{pattern.group}"
    return {
        "sparsity": sparsity,
        "mask_structure": removed,
        "targets": [f"re:{exactly(_module(decision))}" for decision in members],
    }


def _module(decision: Decision) -> str:
    return decision.tensor.removesuffix(".weight")
