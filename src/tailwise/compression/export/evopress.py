"""Levels of EvoPress."""

from __future__ import annotations

import json
import math
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import integers, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.patterns import UNSTRUCTURED
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError
from tailwise.number_formats.number_format import NumberFormat

_TAKES = "int2 … int8 of one kind (-asym, -g<N>, -channel), which differ in bits alone, and bf16"
_LEVELS = 8  # on either side of the uniform sparsity, as EvoPress's own scripts have it


@exporter(
    "evopress",
    source="EvoPress's configurations, `--quant_config_path` and `--sparse_config_path` (arXiv:2410.14649)",
    suffixes=(".txt",),
    kinds=("prune", "quantize"),
)
def levels(plan: Plan) -> Files:
    """A line `layer: level` for every layer; beside it, in NAME.notes.json, the database that the levels count in.

    To quantize, a level is the number of bits. To prune, it counts steps of equally many parameters from the uniform
    sparsity; the steps are rounded together, so that the budget stays.
    """
    layer_levels, about = _bits(plan) if plan.quantizes else _steps(plan)
    if odd := [layer for layer in layer_levels if not layer.isprintable()]:
        fix = "leave it out by --layers"
        raise UsageError("EvoPress's lines cannot hold this name", where=repr(odd[0])[:200], fix=fix)
    text = "\n".join(f"{layer}: {level}" for layer, level in layer_levels.items())
    return {".txt": text.encode(), ".notes.json": (json.dumps(about, indent=1) + "\n").encode()}


def _bits(plan: Plan) -> tuple[dict[str, int], dict[str, Any]]:
    tool_plan = plan_for_tool(plan, "EvoPress", _TAKES, _integer)
    kinds = {(shared, symmetric) for _, shared, symmetric in tool_plan.layers.values()}
    if len(kinds) > 1:
        raise UsageError(
            "EvoPress's levels are bits, and these formats differ in more: "
            + ", ".join(sorted({decision.treatment.words() for decision in plan})),
            fix="plan with formats that differ in bits alone, such as int2-g128,int3-g128,int4-g128",
        )
    ((shared, symmetric),) = kinds
    about = {
        "level": "bits",
        "bitwidth_options": sorted({bits for bits, _, _ in tool_plan.layers.values()}),
        "group_size": shared if isinstance(shared, int) else None,
        "perchannel": True,
        "sym": symmetric,
        "act_order": plan.settings.get("act_order") is True,
        "not_quantized": list(tool_plan.kept),
    }
    return {layer: bits for layer, (bits, _, _) in tool_plan.layers.items()}, about


def _integer(chosen: NumberFormat, decision: Decision) -> tuple[int, str | int, bool] | None:
    del decision
    parts = integers(chosen)
    return None if parts is None or parts.shared == "tensor" else (parts.bits, parts.shared, parts.symmetric)


def _steps(plan: Plan) -> tuple[dict[str, int], dict[str, Any]]:
    wrong = [
        item.tensor for item in plan if item.rank is not None or item.pattern != UNSTRUCTURED or len(item.shape) != 2
    ]
    if wrong:
        raise UsageError(
            f"EvoPress prunes linear layers without a pattern, and these are none: {listed(wrong)}",
            fix="plan without --pattern and not for low_rank or structured, or take the entries out of the plan",
        )
    uniform = plan.sparsity
    moved = {item.tensor.removesuffix(".weight"): item.removed - uniform * item.n_params for item in plan}
    step = max(1, math.ceil(max(map(abs, moved.values())) / _LEVELS))
    steps = _rounded({layer: amount / step for layer, amount in moved.items()})
    sizes = {item.tensor.removesuffix(".weight"): item.n_params for item in plan}
    about = {
        "level": "steps of weights_diff parameters from the uniform sparsity",
        "sparsity": uniform,
        "weights_diff": step,
        "num_levels": _LEVELS,
        "sparsity_of_layers": {layer: uniform + level * step / sizes[layer] for layer, level in steps.items()},
    }
    return steps, about


def _rounded(exact: dict[str, float]) -> dict[str, int]:
    """Whole numbers whose sum is that of the exact ones, by largest remainder."""
    down = {layer: math.floor(value) for layer, value in exact.items()}
    left = round(sum(exact.values())) - sum(down.values())
    first = sorted(exact, key=lambda layer: down[layer] - exact[layer])[:left]
    return {layer: level + (layer in first) for layer, level in down.items()}
