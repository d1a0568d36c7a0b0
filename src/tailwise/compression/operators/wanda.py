"""Wanda: weights times the norms of their inputs."""

from __future__ import annotations

import torch

from tailwise.compression.operators.masks import count_of, lowest_in_groups, lowest_in_rows
from tailwise.compression.operators.operator import Amount, OperatorResult
from tailwise.models.activations import Activations, weighted_magnitudes


def wanda(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:
    """The entries of smallest |W|·‖X‖ of each output row, or in each group of M along it.

    ⌊s·in⌋ entries of every row go, as in the published code, so a row of few inputs may keep a little more.
    """
    assert inputs.norms is not None  # noqa: S101 - `Operator` has checked
    scores = weighted_magnitudes(W, inputs.norms)
    if amount.pattern is None:
        gone = lowest_in_rows(scores, count_of(amount.sparsity, W.shape[1]))
    else:
        gone = lowest_in_groups(scores, *amount.pattern)
    return OperatorResult(W.float().masked_fill(gone, 0.0), ~gone)
