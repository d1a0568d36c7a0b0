"""Eigenvalues through the Gram matrix of the short side: n·m² + 4/3·m³ operations, one m × m matrix of memory.

Only the lower triangle is accumulated, in column panels, so half of the product is never computed (a blocked
SYRK; torch exposes no SYRK of its own). The absolute error of every eigenvalue is a small multiple of ε·λ_max, so
singular values below about √ε·σ_max are not resolved; `solve` checks this and falls back to the SVD.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from tailwise.spectrum.solvers.row_blocks import RowBlocks, long_side_blocks

#: A lower triangle (m × m) → its eigenvalues, ascending.
Reduce = Callable[[torch.Tensor], torch.Tensor]
#: Wide enough for full BLAS speed; the narrower, the less of the upper triangle is computed in vain.
PANEL = 256


def gram(
    matrix: RowBlocks, dtype: torch.dtype, device: torch.device, scale: float = 1.0, *, halves: bool | None = None
) -> torch.Tensor:
    """Lower triangle of scale²·WᵀW (tall) or scale²·WWᵀ (wide), (m × m); the upper one is undefined.

    With `halves`, 16-bit weights are multiplied as they are and their products, exact in float32, added in float32:
    the numbers of a conversion to float32 at the speed of a GPU's 16-bit units. So it is done in float32 on a GPU.
    """
    m = min(matrix.rows, matrix.cols)
    result = torch.zeros(m, m, dtype=dtype, device=device)
    halves = (dtype is torch.float32 and device.type == "cuda") if halves is None else halves
    for block in long_side_blocks(matrix, dtype, device, scale, halves=halves):
        for left in range(0, m, PANEL):
            right = min(left + PANEL, m)
            part, across = result[left:right, :right], block[:, left:right].T
            if block.dtype is dtype:
                part.addmm_(across, block[:, :right])
            else:
                part.add_(_product_of_halves(across, block[:, :right]))
    return result


def _product_of_halves(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    if left.device.type == "cuda":
        return torch.mm(left, right, out_dtype=torch.float32)
    return left.to(torch.float32) @ right.to(torch.float32)


def eigenvalues_of(gram_matrix: torch.Tensor, reduce: Reduce | None = None) -> tuple[torch.Tensor, int]:
    """Eigenvalues of a Gram matrix given by its lower triangle, and how many of them are exact zeros.

    They ascend and are clipped at 0, shape (m,). `reduce` is how a lower triangle is reduced; by torch otherwise.

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
    values = torch.linalg.eigvalsh(gram_matrix, UPLO="L") if reduce is None else reduce(gram_matrix)
    values = values.clamp_min(0)
    return (torch.cat([values.new_zeros(dead), values]) if dead else values), dead
