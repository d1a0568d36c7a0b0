"""Eigenvalues of many symmetric matrices at once: Householder tridiagonalisation of the whole batch, QL on the CPU.

A tridiagonalisation reads the matrix once for every column and computes little on what it reads, so a GPU waits for
launches unless it works on several matrices. Columns are collected in panels, whose updates are one product
(LAPACK's `sytrd`; Dongarra, Sorensen & Hammarling 1989). Plain torch, on whatever device the batch lies.
"""

from __future__ import annotations

import torch

from tailwise.spectrum.solvers.on_cpu import tridiagonal_eigenvalues

#: Columns whose updates of the rest are done in one product.
_PANEL = 32


def eigenvalues(batch: torch.Tensor) -> torch.Tensor:
    """Eigenvalues of (b, m, m), given by its lower triangles: (b, m), ascending. `batch` is overwritten."""
    scale = _scale(batch)
    diagonal, below = tridiagonalise(batch.mul_(scale.view(-1, 1, 1)))
    values = tridiagonal_eigenvalues(diagonal, below)
    return values.div_(scale.to("cpu", torch.float64).view(-1, 1)).to(batch.device, batch.dtype)


def _scale(batch: torch.Tensor) -> torch.Tensor:
    """A power of two for each matrix that brings its largest entry to about 1, (b,); LAPACK's `syev` does the same.

    Norms of columns are sums of squares, which would leave the range of the type long before the entries do.
    """
    largest = batch.tril().abs().amax((1, 2))
    most = 1016 if batch.dtype is torch.float64 else 120  # so that the inverse is within the type, too
    exponent = torch.frexp(largest).exponent.clamp(-most, most)
    return torch.ldexp(torch.ones_like(largest), -exponent)


def tridiagonalise(batch: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Diagonals (b, m) and what stands below them (b, m − 1) of similar matrices. `batch` is overwritten."""
    A = mirrored(batch)
    count, m = A.shape[0], A.shape[1]
    diagonal, below = A.new_empty(count, m), A.new_empty(count, m)
    for start in range(0, m, _PANEL):
        _panel(A[:, start:, start:], diagonal[:, start:], below[:, start:])
    return diagonal, below[:, : m - 1]


def mirrored(batch: torch.Tensor) -> torch.Tensor:
    """`batch` with its lower triangles copied to the upper ones, in place."""
    lower = batch.tril_()
    return lower.add_(lower.tril(-1).mT)


def _panel(S: torch.Tensor, diagonal: torch.Tensor, below: torch.Tensor) -> None:
    """Reduce the first columns of S (b, r, r), and subtract V·Wᵀ + W·Vᵀ from what is right of them."""
    count, r = S.shape[0], S.shape[1]
    width = min(_PANEL, r)
    V, W = S.new_zeros(count, r, width), S.new_zeros(count, r, width)
    for j in range(width):
        known_V, known_W = V[:, j:, :j], W[:, j:, :j]
        column = S[:, j:, j] - _times(known_V, W[:, j, :j]) - _times(known_W, V[:, j, :j])  # (b, r − j)
        diagonal[:, j] = column[:, 0]
        if j + 1 == r:
            return
        v, tau, beta = _reflector(column[:, 1:])
        below[:, j] = beta
        V[:, j + 1 :, j] = v
        known_V, known_W = V[:, j + 1 :, :j], W[:, j + 1 :, :j]
        p = _times(S[:, j + 1 :, j + 1 :], v)
        p -= _times(known_V, _times(known_W.mT, v)) + _times(known_W, _times(known_V.mT, v))
        p *= tau
        W[:, j + 1 :, j] = p - tau / 2 * (p * v).sum(1, keepdim=True) * v
    if width < r:
        left, right = V[:, width:], W[:, width:]
        rest = S[:, width:, width:]
        rest.baddbmm_(left, right.mT, alpha=-1).baddbmm_(right, left.mT, alpha=-1)


def _times(matrices: torch.Tensor, vectors: torch.Tensor) -> torch.Tensor:
    return torch.bmm(matrices, vectors.unsqueeze(2)).squeeze(2)


def _reflector(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """v with v₀ = 1, τ (b, 1) and β (b,) such that (I − τ·v·vᵀ)·x = β·e₀, for each row of x."""
    first, rest = x[:, :1], x[:, 1:]
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
    done = torch.linalg.vector_norm(rest, dim=1, keepdim=True) == 0
    beta = torch.where(first < 0, norm, -norm)
    safe = torch.where(done, torch.ones_like(beta), beta)
    tau = torch.where(done, torch.zeros_like(beta), (safe - first) / safe)
    v = torch.where(done, torch.zeros_like(x), x / torch.where(done, torch.ones_like(beta), first - beta))
    v[:, 0] = 1.0
    return v, tau, torch.where(done, first, beta).squeeze(1)
