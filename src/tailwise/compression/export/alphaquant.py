"""AlphaQuant's configuration of layers, and the plan that it expands to."""

from __future__ import annotations

import json
import re
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import integers, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.number_format import NumberFormat

_TAKES = "mxfp4, mxfp8, mxfp6 (-e3m2), int2, int3, int4 and int8 (-g<N>, -channel; symmetric) and bf16"
_KEPT: dict[str, Any] = {"wq": "bf16", "aq": "bf16", "group_size": 32}
_MX: dict[str, dict[str, Any]] = {
    "mxfp4": {"wq": "mxfp4"},
    "mxfp8": {"wq": "mxfp8"},
    "mxfp6": {"wq": "mxfp6", "extra": {"format": "e2m3"}},
    "mxfp6-e3m2": {"wq": "mxfp6", "extra": {"format": "e3m2"}},
}


@exporter("alphaquant", source="AlphaQuant's `--layer-config` and `--plan`", suffixes=(".json",), kinds=("quantize",))
def config(plan: Plan) -> Files:
    """A default that skips, and an override for each layer; beside it, in NAME.plan.json, the plan it expands to.

    Activations stay in bfloat16, as a plan is about weights. AlphaQuant chooses scales by its own rules.
    """
    tool_plan = plan_for_tool(plan, "AlphaQuant", _TAKES, _scheme)
    schemes = {**tool_plan.layers, **{layer: {**_KEPT, "skip": True} for layer in tool_plan.kept}}
    about = {decision.tensor.removesuffix(".weight"): _facts(decision, plan) for decision in plan}
    expanded = {layer: {**scheme, **about[layer]} for layer, scheme in schemes.items()}
    overrides = [{"pattern": _literal(layer), "skip": False, **scheme} for layer, scheme in expanded.items()]
    document = {"default": {**_KEPT, "skip": True}, "overrides": overrides}
    quantized = {layer: scheme for layer, scheme in expanded.items() if not scheme.get("skip")}
    return {".json": _text(document), ".plan.json": _text(quantized)}


def _scheme(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    del decision
    if chosen.name in _MX:
        return {**_MX[chosen.name], "aq": "bf16", "group_size": 32}
    parts = integers(chosen)
    if parts is None or not parts.symmetric or parts.shared == "tensor":
        return None
    return {"wq": f"int{parts.bits}", "aq": "bf16", "group_size": -1 if parts.group is None else parts.group}


def _facts(decision: Decision, plan: Plan) -> dict[str, Any]:
    """α Hill, where the plan knows it, and the role."""
    alpha = decision.metrics.get("alpha_hill")
    if alpha is None and plan.settings.get("estimator") == "top_outside":
        alpha = decision.metrics.get("alpha")
    return {**({} if alpha is None else {"alpha_hill": alpha}), "category": decision.role}


def _literal(layer: str) -> str:
    """A glob that is found in this name alone."""
    return re.sub(r"([*?[])", r"[\1]", layer)


def _text(document: Any) -> bytes:
    return (json.dumps(document, indent=1) + "\n").encode()
