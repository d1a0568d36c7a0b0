"""SparseGPT: what is removed is made good by the entries that stay."""

from __future__ import annotations

import torch

from tailwise.compression.operators.masks import lowest, lowest_in_groups
from tailwise.compression.operators.operator import Amount, OperatorResult
from tailwise.core.errors import UnreadableError
from tailwise.models.activations import Activations

BLOCK = 128  # columns whose mask is chosen at once
DAMPING = 0.01  # of the mean diagonal of the Hessian
_MOST_DAMPING = 10.0


def sparsegpt(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:
    """The entries whose loss is least, w²/[H⁻¹]², while the columns to their right make the loss good.

    Columns go from left to right in blocks of 128, and the mask of a block is chosen over the block's rows and
    columns together when its turn comes; a group of M when its first column comes. Inputs that were always zero
    lose their weights. Every block removes its share of the budget to the entry, where the published code removes
    one more.
    """
    assert inputs.hessian is not None  # noqa: S101 - `Operator` has checked
    precise = working_dtype(W)
    W, H = W.to(precise, copy=True), inputs.hessian.to(W.device, precise, copy=True)
    if not torch.isfinite(H).all():
        raise UnreadableError("its inputs are not finite", fix="calibrate in float32 or bfloat16 (--dtype)")
    dead = H.diagonal() == 0
    H.diagonal()[dead] = 1.0
    W[:, dead] = 0.0
    U = inverse_factor(H)
    width = BLOCK if amount.pattern is None else max(1, BLOCK // amount.pattern[1]) * amount.pattern[1]
    gone = torch.zeros_like(W, dtype=torch.bool)
    for start in range(0, W.shape[1], width):
        stop = min(start + width, W.shape[1])
        before = round(amount.sparsity * start * len(W))
        count = round(amount.sparsity * stop * len(W)) - before
        errors, gone[:, start:stop] = _block(W[:, start:stop], U[start:stop, start:stop], amount, count)
        W[:, stop:] -= errors @ U[start:stop, stop:]
    return OperatorResult(W.masked_fill(gone, 0.0).float(), ~gone)


def working_dtype(W: torch.Tensor) -> torch.dtype:
    """float64 on a CPU, where one entry that rounding moves across a threshold moves its whole row; else float32."""
    return torch.float64 if W.device.type == "cpu" else torch.float32


def inverse_factor(H: torch.Tensor) -> torch.Tensor:
    """U, upper triangular with H⁻¹ = UᵀU, of the damped Hessian (in × in).

    The damping grows tenfold where 1 % does not make H positive definite.
    """
    damping = DAMPING
    mean = H.diagonal().mean()
    while damping <= _MOST_DAMPING:
        damped = H.clone()
        damped.diagonal().add_(damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped)
        if not int(failed):
            U: torch.Tensor
            U, failed = torch.linalg.cholesky_ex(torch.cholesky_inverse(lower), upper=True)
            if not int(failed):
                return U
        damping *= 10.0
    raise UnreadableError("the Hessian of its inputs cannot be inverted", fix="give more calibration text")


def _block(W: torch.Tensor, U: torch.Tensor, amount: Amount, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Prune a block of columns (out × b) in place: the scaled errors (out × b), and the mask of what goes."""
    diagonal = U.diagonal()
    errors = torch.zeros_like(W)
    gone = torch.zeros_like(W, dtype=torch.bool)
    if amount.pattern is None:
        gone = lowest(W.square() / diagonal.square(), count)
    for column in range(W.shape[1]):
        if amount.pattern is not None and column % amount.pattern[1] == 0:
            group = slice(column, column + amount.pattern[1])
            gone[:, group] = lowest_in_groups(W[:, group].square() / diagonal[group].square(), *amount.pattern)
        lost = torch.where(gone[:, column], W[:, column], 0.0) / diagonal[column]
        W[:, column + 1 :].addr_(lost, U[column, column + 1 :], alpha=-1.0)
        W[:, column].masked_fill_(gone[:, column], 0.0)
        errors[:, column] = lost
    return errors, gone
