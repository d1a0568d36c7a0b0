"""What a model that is stored dequantized would take in the formats of its plan."""

from __future__ import annotations

import os
from pathlib import Path

from tailwise.checkpoints.checkpoint import DTYPE_BITS
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.card import PLAN_FILE
from tailwise.compression.plans.bits import bits_of
from tailwise.compression.plans.plan import Plan

_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


def planned_nbytes(folder: str | os.PathLike[str]) -> int | None:
    """Bytes of all tensors, those with a format of the plan in `folder` taken as packed in it, scales counted.

    None where there is no plan for bits, or the tensors are packed already.
    """
    place = Path(folder).expanduser()
    if not (place / PLAN_FILE).is_file():
        return None
    plan = Plan.load(place / PLAN_FILE)
    if not plan.quantizes and not any(part.quantizes for part in plan.parts):
        return None
    with open_checkpoint(place) as checkpoint:
        total, changed = float(checkpoint.nbytes), False
        for decision in plan:
            spec = checkpoint.tensors.get(decision.tensor)
            if decision.format is None or spec is None or spec.dtype not in _FLOATS:
                continue
            changed = True
            total += spec.numel * (bits_of(decision) - DTYPE_BITS[spec.dtype]) / 8
    return round(total) if changed else None
