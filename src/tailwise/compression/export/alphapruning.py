"""Layer-wise ratios as AlphaPruning's code takes them."""

from __future__ import annotations

import io
import json

from tailwise.compression.export.exporter import Files, exporter
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.phrasing import listed
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError

#: The order in which modeling code makes the layers of a block, which is that of the published loop.
_ORDER = ("attn_q", "attn_k", "attn_v", "attn_kv", "attn_qkv", "attn_o", "mlp_gate", "mlp_gate_up", "mlp_up",
          "mlp_down")  # fmt: skip


@exporter("alphapruning", source="AlphaPruning's `all_layer_ratio` (arXiv:2410.10912)", suffixes=(".npy",))
def ratios(plan: Plan) -> Files:
    """An array of ratios (float64), block by block: q, k, v, o, gate, up, down; beside it their names in JSON.

    A ratio is the fraction of the layer that is removed. It stands where the published code has its own ratios after
    scaling them to the budget; it does not stand for the α that they come from.
    """
    import numpy as np

    if any(decision.rank is not None or ":" in decision.pattern for decision in plan):
        raise UsageError("AlphaPruning's ratios are unstructured", fix="plan without a pattern and not for low_rank")
    outside = [decision.tensor for decision in plan if decision.block is None]
    if outside:
        raise UsageError(
            f"AlphaPruning counts by blocks, and these are in none: {listed(outside)}",
            fix="take these entries out of the plan",
        )
    rows = sorted(plan, key=_place)
    buffer = io.BytesIO()
    np.save(buffer, np.array([decision.sparsity for decision in rows], dtype=np.float64))
    about = {
        "order": "blocks from first to last; in a block " + ", ".join(_ORDER),
        "ratio": "fraction removed",
        "operator": plan.operator,
        "budget": dict(plan.budget),
        "layers": [decision.tensor.removesuffix(".weight") for decision in rows],
    }
    return {".npy": buffer.getvalue(), ".json": (json.dumps(about, indent=1) + "\n").encode()}


def _place(decision: Decision) -> tuple[int, int, str]:
    return decision.block or 0, _ORDER.index(decision.role) if decision.role in _ORDER else len(_ORDER), decision.tensor
