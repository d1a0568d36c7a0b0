"""Magnitude pruning."""

from __future__ import annotations

import torch

from tailwise.compression.operators.masks import lowest, lowest_in_groups
from tailwise.compression.operators.operator import Amount, OperatorResult
from tailwise.models.activations import Activations


def magnitude(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """The entries of smallest |W|, over the whole matrix or in each group of M along its rows."""
    weights = W if W.dtype == torch.float64 else W.float()  # what stays is stored as it was
    scores = weights.abs()
    if amount.pattern is None:
        gone = lowest(scores, round(amount.sparsity * W.numel()))
    else:
        gone = lowest_in_groups(scores, *amount.pattern)
    return OperatorResult(weights.masked_fill(gone, 0.0), ~gone)
