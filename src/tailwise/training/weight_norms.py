"""Norms of a matrix from a few products, without waiting for the device that they run on."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass

import torch

#: Rounds of power iteration from a random start, and from the vector of the last measurement.
COLD_ROUNDS, WARM_ROUNDS = 30, 4
_TINY = 1e-30

Product = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class LiveProducts:
    """A matrix by what it does: W·v and Wᵀ·u."""

    cols: int
    forward: Product  # (cols,) → (rows,)
    adjoint: Product  # (rows,) → (cols,)
    squared: torch.Tensor  # ‖W‖²_F, shape ()


def dense(matrix: torch.Tensor) -> LiveProducts:
    """An operator of a matrix (rows × cols), in float32 or better."""
    W = matrix if matrix.dtype == torch.float64 else matrix.float()
    return LiveProducts(W.shape[1], W.mv, W.T.mv, torch.linalg.vector_norm(W).square())


def product(left: torch.Tensor, right: torch.Tensor) -> LiveProducts:
    """An operator of left @ right, (rows × r) and (r × cols), which is never formed."""
    A, B = left.float(), right.float()
    return LiveProducts(
        B.shape[1],
        lambda v: A.mv(B.mv(v)),
        lambda u: B.T.mv(A.T.mv(u)),
        ((A.T @ A) * (B @ B.T)).sum(),  # tr(BᵀAᵀAB)
    )


class SpectralNorms:
    """‖W‖₂ by power iteration, each matrix from where its last measurement ended.

    σ = ‖Wᵀu‖ with u = Wv/‖Wv‖ (Golub & Van Loan 2013, §8.2): a bound from below that rises with every round.
    """

    def __init__(self) -> None:
        self._starts: dict[str, torch.Tensor] = {}

    def __call__(self, name: str, matrix: LiveProducts, device: torch.device) -> torch.Tensor:
        """‖W‖₂, shape (), still being computed where `device` is a GPU."""
        v = self._starts.get(name)
        warm = v is not None and v.shape == (matrix.cols,) and v.device == device
        if v is None or not warm:
            v = _random(name, matrix.cols).to(device)
        v = v.to(matrix.squared.dtype)
        start, sigma = v, v.new_zeros(())
        for _ in range(WARM_ROUNDS if warm else COLD_ROUNDS):
            u = matrix.forward(v)
            u = u / torch.linalg.vector_norm(u).clamp_min(_TINY)
            w = matrix.adjoint(u)
            sigma = torch.linalg.vector_norm(w)
            v = w / sigma.clamp_min(_TINY)
        # A matrix with NaN, or of zeros, must not spoil the start of later measurements.
        self._starts[name] = torch.where(torch.isfinite(sigma) & (sigma > 0), v, start)
        return sigma

    def forget(self) -> None:
        """Start every matrix at random again."""
        self._starts = {}


def _random(name: str, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
    v = torch.randn(size, generator=generator)
    return torch.nn.functional.normalize(v, dim=0)
