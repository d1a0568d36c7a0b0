"""Round to nearest."""

from __future__ import annotations

import torch

from tailwise.compression.prune.pruner import Activations
from tailwise.compression.quantize.quantizer import Rounded, Target, quantizer


@quantizer("rtn", needs="none", source="the number formats themselves")
def rtn(W: torch.Tensor, target: Target, inputs: Activations) -> Rounded:  # noqa: ARG001 - needs none
    """Every entry to the nearest value of the format, whose scales come from W: the reference."""
    found = target.format.quantize(W)
    return Rounded(found.values, found.grid)
