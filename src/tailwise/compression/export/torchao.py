"""`FqnToConfig` of torchao, in torchao's own JSON."""

from __future__ import annotations

import json
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import Integers, integers, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.number_format import NumberFormat

_TAKES = (
    "int8 (-g<N>, -channel, -tensor), int2 … int8 (-asym, -g<N>, -channel), fp8_e4m3 and fp8_e5m2 (-tensor), nvfp4 "
    "(sizes divisible by 16) and bf16"
)
_FLOAT8 = {"fp8_e4m3": "float8_e4m3fn", "fp8_e5m2": "float8_e5m2"}


@exporter(
    "torchao", source="torchao 0.18, `config_from_dict` and `FqnToConfig`", suffixes=(".json",), kinds=("quantize",)
)
def config(plan: Plan) -> Files:
    """`FqnToConfig` as torchao writes it to JSON: a weight-only config for every layer by its exact name.

    Layers that the plan keeps in floating point have null; those that it does not name are not touched. MX formats
    are refused, as torchao has them only with activations quantized as well.
    """
    tool_plan = plan_for_tool(plan, "torchao", _TAKES, _config)
    layers: dict[str, Any] = {**tool_plan.layers, **dict.fromkeys(tool_plan.kept)}
    document = _node("FqnToConfig", 1, fqn_to_config=layers)
    return {".json": (json.dumps(document, indent=1) + "\n").encode()}


def _config(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    if parts := integers(chosen):
        return _integer(parts)
    base, _, layout = chosen.name.partition("-")
    if base in _FLOAT8 and layout in ("", "tensor"):
        return _node(
            "Float8WeightOnlyConfig",
            2,
            weight_dtype={"_type": "torch.dtype", "_data": _FLOAT8[base]},
            set_inductor_config=True,
            granularity=_granularity("tensor" if layout else "channel"),
        )
    if chosen.name == "nvfp4" and all(size % 16 == 0 for size in decision.shape):
        return _node("NVFP4WeightOnlyConfig", 1, use_dynamic_per_tensor_scale=True)
    return None


def _integer(parts: Integers) -> dict[str, Any] | None:
    if parts.bits == 8 and parts.symmetric:
        return _node(
            "Int8WeightOnlyConfig",
            2,
            group_size=None,
            granularity=_granularity(parts.shared),
            set_inductor_config=True,
        )
    if parts.shared == "tensor":
        return None
    by_row = _node("PerAxis", 1, axis=0)
    return _node(
        "IntxWeightOnlyConfig",
        2,
        weight_dtype={"_type": "torch.dtype", "_data": f"int{parts.bits}"},
        granularity=by_row if parts.group is None else _granularity(parts.shared),
        mapping_type={"_type": "MappingType", "_data": "SYMMETRIC" if parts.symmetric else "ASYMMETRIC"},
        scale_dtype=None,
        intx_packing_format={"_type": "IntxPackingFormat", "_data": "UNPACKED_TO_INT8"},
        intx_choose_qparams_algorithm={"_type": "IntxChooseQParamsAlgorithm", "_data": "AFFINE"},
    )


def _granularity(shared: str | int) -> dict[str, Any]:
    if isinstance(shared, int):
        return _node("PerGroup", 1, group_size=shared)
    return _node("PerTensor", 1) if shared == "tensor" else _node("PerRow", 1, dim=-1)


def _node(kind: str, version: int, **data: Any) -> dict[str, Any]:
    return {"_type": kind, "_version": version, "_data": data}
