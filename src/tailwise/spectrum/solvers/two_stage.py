"""Eigenvalues in two stages: the matrix to a band by products alone, the band to eigenvalues on the CPU.

A direct tridiagonalisation does half of its work in products of a matrix and a vector, at the speed of memory. Going
to a band first does all of it in products of matrices (Bischof & Van Loan 1987; ELPA), and what is left, m²·b for a
band of width b, is little enough for the processor's cores. Plain torch, on whatever device the batch lies.
"""

from __future__ import annotations

import torch

from tailwise.spectrum.solvers.on_cpu import banded_eigenvalues
from tailwise.spectrum.solvers.tridiagonal import mirrored

#: Width of the band: wider panels are faster products, a narrower band is less work on the CPU.
BAND = 32


def eigenvalues(batch: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (b, m, m), given by its lower triangles: (b, m), ascending. `batch` is overwritten."""
    return banded_eigenvalues(to_band(batch)).to(batch.device, batch.dtype)


def to_band(batch: torch.Tensor, width: int = BAND) -> torch.Tensor:
    """The diagonal and `width` diagonals below it of similar matrices, (b, width + 1, m), as LAPACK stores them."""
    A = mirrored(batch)
    m = A.shape[1]
    for start in range(0, m - width - 1, width):
        below, right = start + width, min(start + width, m)
        _reduce(A[:, below:, start:right], A[:, below:, below:])
    band = A.new_zeros(A.shape[0], width + 1, m)
    for index in range(min(width + 1, m)):
        band[:, index, : m - index] = A.diagonal(-index, 1, 2)
    return band


def _reduce(panel: torch.Tensor, rest: torch.Tensor) -> None:
    """Make `panel` (b, r, w) upper triangular by Qᵀ from the left, and `rest` (b, r, r) Qᵀ·rest·Q."""
    factored, tau = torch.geqrf(panel)
    k = tau.shape[-1]
    panel.copy_(factored.triu())
    Y = factored[..., :k].tril(-1)
    Y.diagonal(0, 1, 2).fill_(1.0)
    # Q = I − Y·T·Yᵀ with T = (I + D·U)⁻¹·D, U the part of YᵀY above the diagonal (Puglisi 1992), also where τ = 0.
    D = torch.diag_embed(tau)
    system = torch.eye(k, dtype=tau.dtype, device=tau.device) + D @ (Y.mT @ Y).triu(1)
    T = torch.linalg.solve_triangular(system, D, upper=True)
    X = rest @ (Y @ T)
    Z = X - Y @ (T.mT @ (Y.mT @ X)) / 2
    rest.baddbmm_(Y, Z.mT, alpha=-1).baddbmm_(Z, Y.mT, alpha=-1)
