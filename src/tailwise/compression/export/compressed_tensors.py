"""The `quantization_config` of compressed-tensors."""

from __future__ import annotations

import json
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.meaning import exactly, grouped, integers, said
from tailwise.compression.plan import Decision, Plan
from tailwise.number_formats.number_format import NumberFormat

TAKES = "int2 … int8 (-asym, -g<N>, -channel, -tensor), fp8_e4m3 (-tensor), mxfp4, mxfp6, mxfp8, nvfp4 and bf16"
_PACKED = "pack-quantized"
#: name → (how the packed weights are stored, `weights` of a scheme).
_FLOATS: dict[str, tuple[str, dict[str, Any]]] = {
    "fp8_e4m3": ("naive-quantized", {"num_bits": 8, "strategy": "channel"}),
    "fp8_e4m3-tensor": ("naive-quantized", {"num_bits": 8, "strategy": "tensor"}),
    "mxfp8": ("mxfp8-quantized", {"num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
    "mxfp6": (
        "mxfp6-pack-quantized",
        {"num_bits": 6, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "mxfp4": (
        "mxfp4-pack-quantized",
        {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"},
    ),
    "nvfp4": (
        "nvfp4-pack-quantized",
        {"num_bits": 4, "strategy": "tensor_group", "group_size": 16, "scale_dtype": "torch.float8_e4m3fn"},
    ),
}


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
    groups, kept = schemes(plan, "compressed-tensors")
    formats = sorted({group["format"] for group in groups.values()})
    document = {
        "quant_method": "compressed-tensors",
        "quantization_status": "compressed",
        "format": formats[0] if len(formats) == 1 else "mixed-precision",
        "config_groups": groups,
        "ignore": kept,
    }
    return {".json": (json.dumps({"quantization_config": document}, indent=1) + "\n").encode()}


def schemes(plan: Plan, tool: str) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """`config_groups` by name, and the modules that stay in floating point."""
    found = said(plan, tool, TAKES, scheme)
    groups = {
        f"group_{number}": {"targets": [f"re:{exactly(layer)}" for layer in members], **settings}
        for number, (settings, members) in enumerate(grouped(found.layers))
    }
    return groups, list(found.kept)


def scheme(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    """`weights` and `format` of a scheme; None where compressed-tensors has no such format."""
    del decision
    if parts := integers(chosen):
        weights: dict[str, Any] = {"num_bits": parts.bits, "type": "int", "symmetric": parts.symmetric}
        grouped_by = {} if parts.group is None else {"group_size": parts.group}
        weights |= {"strategy": "group" if grouped_by else parts.shared, **grouped_by}
        return {"weights": {**weights, "dynamic": False}, "format": _PACKED}
    if chosen.name not in _FLOATS:
        return None
    stored, weights = _FLOATS[chosen.name]
    return {"weights": {"type": "float", "symmetric": True, **weights, "dynamic": False}, "format": stored}
