"""Low rank: W ≈ A·B by a truncated SVD, of W itself or of W as its inputs see it."""

from __future__ import annotations

import torch

from tailwise.compression.operators.operator import Amount, OperatorResult
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations

DAMPING = 1e-4  # of the mean diagonal of the Hessian, where it is not positive definite by itself
_MOST_DAMPING = 1.0


def low_rank(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:  # noqa: ARG001 - needs none
    """The r leading singular directions of W."""
    left, right = _truncated(W.double(), amount)
    return _product(left, right)


def low_rank_whitened(W: torch.Tensor, amount: Amount, inputs: Activations) -> OperatorResult:
    """The matrix of rank r that least changes the outputs, ‖X·(W − A·B)ᵀ‖_F.

    With XᵀX = S·Sᵀ (Cholesky), that is the truncated SVD of W·S, times S⁻¹.
    """
    assert inputs.hessian is not None  # noqa: S101 - `Operator` has checked
    S = _root(inputs.hessian.to(W.device, torch.float64))
    left, right = _truncated(W.double() @ S, amount)
    return _product(left, torch.linalg.solve_triangular(S, right, upper=False, left=False))


def _truncated(W: torch.Tensor, amount: Amount) -> tuple[torch.Tensor, torch.Tensor]:
    most = min(W.shape)
    if amount.rank is None or not 1 <= amount.rank <= most:
        raise UsageError(f"a rank of {amount.rank} cannot be reached", fix=f"give a whole number from 1 to {most}")
    try:
        U, sigma, Vh = torch.linalg.svd(W, full_matrices=False)
    except RuntimeError as error:
        raise UnreadableError("its singular values do not converge", fix="look for NaN in the weights") from error
    # Both factors carry √σ, so neither overflows a narrow dtype before the other.
    root = sigma[: amount.rank].sqrt()
    return U[:, : amount.rank] * root, root[:, None] * Vh[: amount.rank]


def _product(left: torch.Tensor, right: torch.Tensor) -> OperatorResult:
    return OperatorResult((left @ right).float(), None, (left.float(), right.float()))


def _root(H: torch.Tensor) -> torch.Tensor:
    """S, lower triangular with H = S·Sᵀ; damped as little as makes H positive definite."""
    if not torch.isfinite(H).all():
        raise UnreadableError("its inputs are not finite", fix="calibrate in float32 or bfloat16 (--dtype)")
    mean, damping = H.diagonal().mean(), 0.0
    while damping <= _MOST_DAMPING:
        damped = H.clone()
        damped.diagonal().add_(damping * mean)
        S: torch.Tensor
        S, failed = torch.linalg.cholesky_ex(damped)
        # S⁻¹ must not magnify rounding: its smallest pivot is held well above that of float32 statistics.
        if not int(failed) and float(S.diagonal().min()) > 1e-4 * float(S.diagonal().max()):
            return S
        damping = DAMPING if damping == 0.0 else damping * 10.0
    raise UnreadableError("the Hessian of its inputs is zero", fix="give more calibration text")
