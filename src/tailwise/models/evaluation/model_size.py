"""Size of a model, read from its tensors in blocks of rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings.partition import claimed
from tailwise.checkpoints.roles import classify
from tailwise.models.evaluation.scores import ModelSize

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint

_ENTRIES = 1 << 24  # read at once


def facts_of(model: Any) -> ModelSize:
    """Parameters, zeros and bytes of what `open_checkpoint` takes. Packed weights are counted as decoded."""
    with open_checkpoint(model) as stored:
        nbytes = stored.nbytes
        checkpoint = claimed(stored)
        total = nonzero = inside = inside_nonzero = 0
        for name, spec in checkpoint.tensors.items():
            if name in checkpoint.shared or name in checkpoint.unsupported:
                continue
            count = _count(checkpoint, name)
            if count is None:
                continue
            total, nonzero = total + spec.numel, nonzero + count
            if _in_block(name, len(spec.shape), checkpoint.config):
                inside, inside_nonzero = inside + spec.numel, inside_nonzero + count
    return ModelSize(total, nonzero, inside, inside_nonzero, nbytes)


def _count(checkpoint: Checkpoint, name: str) -> int | None:
    """Entries that are not zero; None for a tensor of integers, which holds positions or codes."""
    spec = checkpoint.tensors[name]
    rows = spec.shape[0] if spec.shape else 1
    step = max(1, _ENTRIES * rows // max(1, spec.numel))
    step = rows if name in checkpoint.read_whole else step
    count = 0
    for start in range(0, rows, max(1, step)):
        part = checkpoint.read_rows(name, start, min(rows, start + step))
        if not (part.is_floating_point() or part.is_complex()):
            return None
        count += int((part.float() if part.element_size() == 1 else part).count_nonzero())
    return count


def _in_block(name: str, ndim: int, config: Any) -> bool:
    match = classify(name, ndim, config)
    looked_up = ("norm", "bias", "pos_embed", "embed", "codebook")
    return ndim >= 2 and match.block is not None and match.role not in looked_up
