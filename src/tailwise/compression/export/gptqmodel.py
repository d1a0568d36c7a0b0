"""`dynamic` of GPTQModel."""

from __future__ import annotations

import json
from typing import Any

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.export.meaning import grouped, integers, one_of, said
from tailwise.compression.plan import Decision, Plan
from tailwise.number_formats.number_format import NumberFormat

_TAKES = "int2, int3, int4 and int8 (-asym, -g<N>, -channel) and bf16"


@exporter("gptqmodel", source="GPTQModel 7.6, `QuantizeConfig(**…)`", suffixes=(".json",), kinds=("quantize",))
def config(plan: Plan) -> Files:
    """Arguments of `QuantizeConfig` in JSON: a base, and `dynamic` with what differs from it.

    One pattern skips every module that the plan does not quantize. GPTQModel looks at `-:` patterns first.
    """
    found = said(plan, "GPTQModel", _TAKES, _settings)
    act_order = plan.settings.get("act_order") is True
    groups = grouped(found.layers)
    base, _ = max(groups, key=lambda group: len(group[1]))
    dynamic: dict[str, dict[str, Any]] = {f"-:^(?!{one_of(found.layers)}$).*$": {}}
    for settings, members in groups:
        dynamic[f"+:^{one_of(members)}$"] = {**settings, "desc_act": act_order}
    document = {**base, "desc_act": act_order, "dynamic": dynamic}
    return {".json": (json.dumps(document, indent=1) + "\n").encode()}


def _settings(chosen: NumberFormat, decision: Decision) -> dict[str, Any] | None:
    del decision
    parts = integers(chosen)
    if parts is None or parts.shared == "tensor":
        return None
    return {"bits": parts.bits, "group_size": -1 if parts.group is None else parts.group, "sym": parts.symmetric}
