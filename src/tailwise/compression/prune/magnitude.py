"""Magnitude pruning."""

from __future__ import annotations

import torch

from tailwise.compression.prune.masks import lowest, lowest_in_groups
from tailwise.compression.prune.pruner import Activations, Amount, Pruned, pruner


@pruner("magnitude", needs="none", source="Han et al. 2015, arXiv:1506.02626; one threshold per tensor")
def magnitude(W: torch.Tensor, amount: Amount, inputs: Activations) -> Pruned:  # noqa: ARG001 - needs none
    """The entries of smallest |W|, over the whole matrix or in each group of M along its rows."""
    found = W if W.dtype == torch.float64 else W.float()  # what stays is stored as it was
    scores = found.abs()
    if amount.pattern is None:
        gone = lowest(scores, round(amount.sparsity * W.numel()))
    else:
        gone = lowest_in_groups(scores, *amount.pattern)
    return Pruned(found.masked_fill(gone, 0.0), ~gone)
