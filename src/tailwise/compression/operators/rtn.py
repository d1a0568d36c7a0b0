"""Round to nearest."""

from __future__ import annotations

import torch

from tailwise.compression.operators.operator import OperatorResult, Target
from tailwise.models.activations import Activations


def rtn(W: torch.Tensor, target: Target, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """Every entry to the nearest value of the format, whose scales come from W: the reference."""
    found = target.format.quantize(W)
    return OperatorResult(found.values, grid=found.grid)
