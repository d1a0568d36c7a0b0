"""`dynamic` of GPTQModel."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.tool_plan import grouped, integers, one_of, plan_for_tool
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.number_formats.number_format import NumberFormat

_TAKES = "int2, int3, int4 and int8 (-asym, -g<N>, -channel) and bf16, of layers in numbered blocks"
_BEFORE = re.compile(r".*?\.(?=\d+\.)")  # what stands before the number of a block


@exporter(
    "gptqmodel",
    source="GPTQModel 7.6, `QuantizeConfig(**…)`, or `RTNConfig(**…)` to round to nearest",
    suffixes=(".json",),
    kinds=("quantize",),
)
def config(plan: Plan) -> Files:
    """Arguments of `QuantizeConfig`, or for rtn of `RTNConfig`, in JSON: a base, and a pattern for each format.

    One pattern, `-:`, skips every module in a block that the plan does not quantize; GPTQModel looks at it first, and
    leaves the rest of a model as it is.
    """
    tool_plan = plan_for_tool(plan, "GPTQModel", _TAKES, _settings)
    act_order = plan.settings.get("act_order") is True
    groups = grouped(tool_plan.layers)
    base, _ = max(groups, key=lambda group: len(group[1]))
    dynamic: dict[str, dict[str, Any]] = {f"-:^(?!{one_of(tool_plan.layers)}$){_in_blocks(tool_plan.layers)}.*$": {}}
    for settings, members in groups:
        dynamic[f"+:^{one_of(members)}$"] = {**settings, "desc_act": act_order}
    # Columns in their own order, or in that of their inputs; left out, GPTQModel takes a third one.
    order = {"desc_act": act_order, **({"act_group_aware": False} if plan.operator == "gptq" else {})}
    document = {**base, **order, "dynamic": dynamic}
    return {".json": (json.dumps(document, indent=1) + "\n").encode()}


def _in_blocks(layers: Iterable[str]) -> str:
    """How full names begin: GPTQModel tries names as they are inside a block too, and those must not be skipped."""
    return one_of(sorted({match[0] for layer in layers if (match := _BEFORE.match(layer))})) + r"\d+\."


def _settings(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    parts = integers(chosen)
    if parts is None or parts.shared == "tensor" or not _BEFORE.match(decision.tensor):
        return None
    return {"bits": parts.bits, "group_size": -1 if parts.group is None else parts.group, "sym": parts.symmetric}
