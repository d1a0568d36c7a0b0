"""Round to nearest, and with the importances of the inputs."""

from __future__ import annotations

import torch

from tailwise.compression.operators.operator import OperatorResult, Target
from tailwise.models.activations import Activations
from tailwise.number_formats.ggml_blocks import BlockFormat
from tailwise.number_formats.ggml_types import GgmlFormat


def rtn(W: torch.Tensor, target: Target, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """Every entry to the nearest value of the format, whose scales come from W: the reference."""
    quantized = target.format.quantize(W, target.reach)
    return OperatorResult(quantized.values, grid=quantized.grid)


def imatrix(W: torch.Tensor, target: Target, inputs: Activations) -> OperatorResult:
    """Scales and codes that make Σ_j E[x_j²]·(ŵ_ij − w_ij)² small in each block, as ggml searches for them.

    The importance of a column is the mean square of its input. Formats that are not llama.cpp's, and q8_0, do not look
    at it: they are rounded to nearest.
    """
    assert inputs.norms is not None  # noqa: S101 - `Operator` has checked
    chosen = target.format.fitting(W.shape[1])
    if isinstance(chosen, BlockFormat | GgmlFormat):
        quantized = chosen.weighted(W, inputs.norms.square())
    else:
        quantized = chosen.quantize(W, target.reach)
    return OperatorResult(quantized.values, grid=quantized.grid)
