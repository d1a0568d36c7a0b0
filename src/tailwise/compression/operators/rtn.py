"""Round to nearest."""

from __future__ import annotations

import torch

from tailwise.compression.operators.operator import OperatorResult, Target
from tailwise.models.activations import Activations


def rtn(W: torch.Tensor, target: Target, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """Every entry to the nearest value of the format, whose scales come from W: the reference."""
    quantized = target.format.quantize(W)
    return OperatorResult(quantized.values, grid=quantized.grid)
