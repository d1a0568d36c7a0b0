"""The `quantization_config` of compressed-tensors."""

from __future__ import annotations

import json
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import exactly, grouped, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.schemes import scheme_of
from tailwise.number_formats.number_format import NumberFormat

TAKES = "int2 … int8 (-asym, -g<N>, -channel, -tensor), fp8_e4m3 (-tensor), mxfp4, mxfp6, mxfp8, nvfp4 and bf16"


@exporter(
    "compressed-tensors",
    source="compressed-tensors 0.20, `quantization_config` of a config.json",
    suffixes=(".json",),
    kinds=("quantize",),
)
def config(plan: Plan) -> Files:
    """The `quantization_config` of a config.json: a group of layers for each format, weights only.

    Targets are exact. Layers that the plan keeps in floating point are on the ignore list; those that it does not
    name match no target.
    """
    groups, unquantized = schemes(plan, "compressed-tensors")
    formats = sorted({group["format"] for group in groups.values()})
    document = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": unquantized,
    }
    return {".json": (json.dumps({"quantization_config": document}, indent=1) + "\n").encode()}


def schemes(plan: Plan, tool: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`config_groups` by name, and the modules that stay in floating point."""
    tool_plan = plan_for_tool(plan, tool, TAKES, scheme)
    groups = {
        f"group_{number}": {"targets": [f"re:{exactly(layer)}" for layer in members], **settings}
        for number, (settings, members) in enumerate(grouped(tool_plan.layers))
    }
    return groups, list(tool_plan.kept)


def scheme(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    """`weights` and `format` of a scheme; None where compressed-tensors has no such format."""
    del decision
    given = scheme_of(chosen)
    if given is None:
        return None
    return {"weights": {name: value for name, value in given.weights.items() if value is not None},
            "format": given.layout}  # fmt: skip
