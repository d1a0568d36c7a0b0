"""`layer_config` of AutoRound."""

from __future__ import annotations

import json
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import integers, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.number_format import NumberFormat

_TAKES = (
    "int2, int3, int4 (-asym) and int8 (-g<N>, -channel, -tensor), fp8_e4m3 (-tensor), mxfp4, mxfp8, nvfp4 and bf16"
)
#: AutoRound's group sizes of a whole row and a whole tensor.
_WHOLE = {"channel": -1, "tensor": 0}
_FLOATS: dict[str, dict[str, Any]] = {
    "fp8_e4m3": {"bits": 8, "group_size": -1, "data_type": "fp"},
    "fp8_e4m3-tensor": {"bits": 8, "group_size": 0, "data_type": "fp"},
    "mxfp4": {"bits": 4, "group_size": 32, "data_type": "mx_fp"},
    "mxfp8": {"bits": 8, "group_size": 32, "data_type": "mx_fp"},
    "nvfp4": {"bits": 4, "group_size": 16, "data_type": "nv_fp"},
}


@exporter("autoround", source="auto-round 0.16, `AutoRound(model, **…)`", suffixes=(".json",), kinds=("quantize",))
def config(plan: Plan) -> Files:
    """Arguments of `AutoRound` in JSON: `layer_config` by exact names, and a `scheme` that leaves all else as it is."""
    tool_plan = plan_for_tool(plan, "AutoRound", _TAKES, _settings)
    document = {"scheme": "BF16", "layer_config": dict(tool_plan.layers)}
    return {".json": (json.dumps(document, indent=1) + "\n").encode()}


def _settings(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    del decision
    weights_only = {"act_bits": 16}
    if parts := integers(chosen):
        if parts.bits == 8 and not parts.symmetric:
            return None  # AutoRound refuses it before it knows in which format it will save
        size = parts.group if parts.group is not None else _WHOLE[str(parts.shared)]
        return {"bits": parts.bits, "group_size": size, "sym": parts.symmetric, "data_type": "int", **weights_only}
    if chosen.name in _FLOATS:
        return {**_FLOATS[chosen.name], "sym": True, **weights_only}
    return None
