"""Golub-Kahan bidiagonalisation from many starts at once, with products alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise.core.errors import UsageError

Vector = NDArray[np.float64]
Product = Callable[[torch.Tensor], torch.Tensor]

#: Powers of A that bring Q near the leading directions.
_POWERS = 2


@dataclass(frozen=True)
class MatrixProducts:
    """A matrix (rows × cols) by its products with blocks of columns."""

    rows: int
    cols: int
    forward: Product  # X (cols × p) → W·X (rows × p)
    adjoint: Product  # Y (rows × p) → Wᵀ·Y (cols × p)
    device: str | torch.device = "cpu"
    dtype: torch.dtype = torch.float32


#: Entries whose fourth powers, times the size of a matrix, stay within a type.
_LARGE32, _LARGE64 = 1e8, 1e70


def operator_of(matrix: torch.Tensor) -> MatrixProducts:
    """The products of a matrix, in float32 or better: in float64 where squares would leave float32."""
    if matrix.ndim != 2 or matrix.numel() == 0:
        raise UsageError(f"a tensor of shape {tuple(matrix.shape)} is not a matrix", fix="give two axes")
    W = matrix.detach()
    W = W if W.dtype in (torch.float32, torch.float64) else W.float()
    if not bool(torch.isfinite(W).all()):
        raise UsageError("the matrix holds NaN or Inf", fix="find the step that made it")
    largest = float(W.abs().max())
    if W.dtype == torch.float32 and largest and not 1 / _LARGE32 < largest < _LARGE32:
        W = W.double()
    elif largest and not 1 / _LARGE64 < largest < _LARGE64:
        raise UsageError(f"the largest entry is {largest:.1e}, and its powers leave float64", fix="rescale the matrix")
    return MatrixProducts(W.shape[0], W.shape[1], W.__matmul__, W.T.__matmul__, W.device, W.dtype)


def transposed(operator: MatrixProducts) -> MatrixProducts:
    """Of Wᵀ."""
    return MatrixProducts(
        operator.cols, operator.rows, operator.adjoint, operator.forward, operator.device, operator.dtype
    )  # fmt: skip


def near_leading(operator: MatrixProducts, random: torch.Tensor) -> torch.Tensor:
    """An orthonormal Q (m × r) near the leading directions, from a random block of that shape."""
    Q: torch.Tensor = torch.linalg.qr(random)[0]
    for _ in range(_POWERS):
        Q = torch.linalg.qr(operator.adjoint(operator.forward(Q)))[0]
    return Q


def bidiagonalise(
    operator: MatrixProducts, starts: torch.Tensor, steps: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """From starts (m × starts): diagonals and what stands above them (starts, steps), and bases (starts, steps, m)."""
    count, m = starts.shape[1], operator.cols
    V = torch.zeros(count, steps, m, device=starts.device, dtype=starts.dtype)
    diagonal, above = (torch.zeros(count, steps, device=starts.device, dtype=starts.dtype) for _ in range(2))
    V[:, 0] = starts.T
    u = operator.forward(starts)  # (n × starts)
    for step in range(steps):
        diagonal[:, step] = torch.linalg.vector_norm(u, dim=0)
        u = _unit(u, diagonal[:, step])
        if step + 1 == steps:
            break
        w = operator.adjoint(u).T  # (starts, m)
        scale = torch.linalg.vector_norm(w, dim=1)
        known = V[:, : step + 1]
        for _ in range(2):  # twice is enough (Parlett & Kahan)
            w = w - torch.einsum("skm,sk->sm", known, torch.einsum("skm,sm->sk", known, w))
        norm = torch.linalg.vector_norm(w, dim=1)
        # What is left after the space is exhausted is rounding: it must not start a space of its own.
        above[:, step] = torch.where(norm > 8 * torch.finfo(w.dtype).eps * scale, norm, 0.0)
        V[:, step + 1] = _unit(w.T, above[:, step]).T
        u = operator.forward(V[:, step + 1].T) - above[:, step] * u
    return diagonal, above, V


def _unit(columns: torch.Tensor, norms: torch.Tensor) -> torch.Tensor:
    return columns * torch.where(norms > 0, 1 / norms.clamp_min(torch.finfo(norms.dtype).tiny), 0.0)


def triangles(diagonal: torch.Tensor, above: torch.Tensor) -> Vector:
    """Upper bidiagonal matrices, (starts, steps, steps)."""
    alphas, betas = diagonal.double().cpu().numpy(), above.double().cpu().numpy()
    steps = alphas.shape[1]
    B = np.zeros((len(alphas), steps, steps))
    B[:, range(steps), range(steps)] = alphas
    B[:, range(steps - 1), range(1, steps)] = betas[:, : steps - 1]
    return B


def nodes(diagonal: torch.Tensor, above: torch.Tensor) -> tuple[Vector, Vector]:
    """Nodes λ and weights of every start, (starts, steps)."""
    _, sigma, right = np.linalg.svd(triangles(diagonal, above))
    return sigma**2, right[:, :, 0] ** 2


def rounding(operator: MatrixProducts) -> float:
    """Relative error of λ_max by rounding, which adds up like a random walk."""
    return 4 * math.sqrt(operator.cols) * float(torch.finfo(operator.dtype).eps)
