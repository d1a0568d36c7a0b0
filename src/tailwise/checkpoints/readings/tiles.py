"""Scales in cuBLAS' tiles, as ComfyUI keeps them, and how a file says that they lie so."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Siblings
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

TILED = frozenset({"nvfp4", "mxfp8"})


def comfy_format(group: Siblings, checkpoint: Checkpoint) -> str:
    """The format that ComfyUI states for a layer, in a tensor of JSON beside it or in the file's header; or ""."""
    if "comfy_quant" not in group.leaves and "_quantization_metadata" not in checkpoint.metadata:
        return ""
    try:
        if (marker := group.leaves.get("comfy_quant")) is not None:
            said = json_of(bytes(checkpoint.read(marker.name).flatten().tolist()))
        else:
            said = json_of(checkpoint.metadata["_quantization_metadata"]).get("layers", {}).get(group.module, {})
        return str(said.get("format", ""))
    except (ValueError, AttributeError, TypeError):
        return ""


def untiled(scale: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Scales (rows × cols) from cuBLAS' layout for block scales: tiles of 128 × 4, within which rows 32 apart meet."""
    high, wide = -(-rows // 128), -(-cols // 4)
    tiles = scale.reshape(high * wide, 32, 4, 4).transpose(1, 2).reshape(high, wide, 128, 4)
    return tiles.permute(0, 2, 1, 3).reshape(high * 128, wide * 4)[:rows, :cols].contiguous()
