"""Which entries go: those of lowest score in the whole tensor, in each row, or in each group of M.

All masks are True where an entry goes. Counts are exact, and equal scores are settled the same way every time.
"""

from __future__ import annotations

import torch

from tailwise.compression.operators.operator import Amount, OperatorResult
from tailwise.models.activations import Activations

#: Below this a product of counts and decimal fractions is taken for the whole number that it misses.
_ROUNDING = 1e-6
#: Entries sorted at once.
_CHUNK = 1 << 24


def count_of(sparsity: float, entries: int) -> int:
    """Entries that go, rounded down as in the published code, but not by a rounding error of the fraction."""
    return min(entries, int(sparsity * entries + _ROUNDING))


def lowest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` entries of lowest score in the whole tensor, any shape.

    Where more entries than needed are equal to the last one taken, as in bfloat16, those taken are spread evenly.
    """
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    flat = scores.flatten()
    limit = flat.kthvalue(count).values
    gone = flat < limit
    ties = (flat == limit).nonzero().flatten()
    missing = count - int(gone.sum())
    gone[ties[torch.arange(missing, device=ties.device) * len(ties) // max(missing, 1)]] = True
    return gone.view(scores.shape)


def lowest_in_rows(scores: torch.Tensor, count: int) -> torch.Tensor:
    """The `count` entries of lowest score in each row of (rows × cols); of equals the first."""
    gone = torch.zeros_like(scores, dtype=torch.bool)
    if count <= 0:
        return gone
    for part, into in zip(_parts(scores), _parts(gone), strict=True):
        into.scatter_(1, part.argsort(dim=1, stable=True)[:, :count], True)
    return gone


def lowest_in_groups(scores: torch.Tensor, n: int, group: int) -> torch.Tensor:
    """All but the `kept` entries of highest score of each `group` along the rows of (rows × cols)."""
    rows, cols = scores.shape
    inner = scores.reshape(rows * (cols // group), group)
    return lowest_in_rows(inner, group - n).view(rows, cols)


def _parts(matrix: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(matrix, max(1, _CHUNK // max(matrix.shape[1], 1)))


def magnitude(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """The entries of smallest |W|, over the whole matrix or in each group of M along its rows."""
    weights = W if W.dtype == torch.float64 else W.float()  # what stays is stored as it was
    scores = weights.abs()
    if amount.pattern is None:
        gone = lowest(scores, round(amount.sparsity * W.numel()))
    else:
        gone = lowest_in_groups(scores, *amount.pattern)
    return OperatorResult(weights.masked_fill(gone, 0.0), ~gone)
