"""Singular values directly: four times the cost of the Gram matrix, relative accuracy ε·σ_max on σ itself."""

from __future__ import annotations

import torch

from tailwise.spectrum.solvers.gram import RowBlocks, long_side_blocks


def singular_values(matrix: RowBlocks, device: torch.device, scale: float = 1.0) -> torch.Tensor:
    """All singular values in float64, ascending, (m,).

    W is first reduced to the R of its QR decomposition block by block, so memory is m × m and one block.
    """
    reduced: torch.Tensor | None = None
    m = min(matrix.rows, matrix.cols)
    waiting: list[torch.Tensor] = []
    for block in long_side_blocks(matrix, torch.float64, device, scale):
        waiting.append(block)
        # A QR of m new rows under R costs twice that of the rows alone; fewer rows at a time would cost more.
        if sum(map(len, waiting)) >= m:
            reduced, waiting = _reduce(reduced, waiting), []
    if waiting:
        reduced = torch.cat([*waiting] if reduced is None else [reduced, *waiting])
    assert reduced is not None  # noqa: S101 - a matrix has at least one row
    if reduced.shape[0] > 3 * m // 2:
        reduced = torch.linalg.qr(reduced, mode="r").R
    values: torch.Tensor = torch.linalg.svdvals(reduced)
    return values.flip(0)


def _reduce(reduced: torch.Tensor | None, waiting: list[torch.Tensor]) -> torch.Tensor:
    if reduced is None:
        return torch.cat(waiting)
    upper: torch.Tensor = torch.linalg.qr(torch.cat([reduced, *waiting]), mode="r").R
    return upper


def factor_singular_values(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Singular values of left @ right, (rows × r) and (r × cols), without forming it: ascending, (r,).

    With left = Q₁R₁ and rightᵀ = Q₂R₂ they are those of the r × r matrix R₁R₂ᵀ.
    """
    inner_left = torch.linalg.qr(left.to(torch.float64), mode="r").R
    inner_right = torch.linalg.qr(right.to(torch.float64).T, mode="r").R
    values: torch.Tensor = torch.linalg.svdvals(inner_left @ inner_right.T)
    return values.flip(0)
