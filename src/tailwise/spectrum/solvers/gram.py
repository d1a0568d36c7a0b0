"""Eigenvalues through the Gram matrix of the short side: n·m² + 4/3·m³ operations, one m × m matrix of memory.

Only the lower triangle is accumulated, in column panels, so half of the product is never computed (a blocked
SYRK; torch exposes no SYRK of its own). The absolute error of every eigenvalue is a small multiple of ε·λ_max, so
singular values below about √ε·σ_max are not resolved; `solve` checks this and falls back to the SVD.
"""

from __future__ import annotations

import torch

from tailwise.spectrum.solvers.blocks import RowBlocks, long_side_blocks

#: Wide enough for full BLAS speed; the narrower, the less of the upper triangle is computed in vain.
PANEL = 256


def gram(matrix: RowBlocks, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """Lower triangle of scale²·WᵀW (tall) or scale²·WWᵀ (wide), (m × m); the upper one is undefined."""
    m = min(matrix.rows, matrix.cols)
    result = torch.zeros(m, m, dtype=dtype, device=device)
    for block in long_side_blocks(matrix, dtype, device, scale):
        for left in range(0, m, PANEL):
            right = min(left + PANEL, m)
            result[left:right, :right].addmm_(block[:, left:right].T, block[:, :right])
    return result


def eigenvalues_of(gram_matrix: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Eigenvalues of a Gram matrix given by its lower triangle, and how many of them are exact zeros.

    They ascend and are clipped at 0, shape (m,).

    Columns of W that are zero throughout (pruned or never used units) give exact zeros and are taken out first: it
    is faster, and keeps the rest from looking singular.
    """
    diagonal = gram_matrix.diagonal()
    alive = torch.nonzero(diagonal).flatten()
    dead = len(diagonal) - len(alive)
    if dead:
        gram_matrix = gram_matrix[alive][:, alive]
    if len(alive) == 0:
        return torch.zeros_like(diagonal), dead
    values = torch.linalg.eigvalsh(gram_matrix, UPLO="L").clamp_min_(0)
    return (torch.cat([values.new_zeros(dead), values]) if dead else values), dead
