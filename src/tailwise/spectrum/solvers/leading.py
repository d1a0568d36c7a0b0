"""The leading directions of a matrix, without a full eigen-decomposition.

Block Krylov iteration with restarts (Musco & Musco 2015): the subspace spanned by X, GX, …, G^q·X is built in blocks,
so the work is matrix products, and the leading Ritz vectors start the next round. Started near the answer, as with
a matrix that was perturbed a little, one or two rounds suffice.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

#: Columns iterated beyond those asked for: they take up the directions just below.
_EXTRA = 8
#: Powers of G per round; more need more memory and fewer rounds.
_POWERS = 3
_MOST_ROUNDS = 12
#: Rows of the triangle that are multiplied at once.
_PANEL = 256
#: Share of the subspace that may still turn between two rounds.
TOLERANCE = 1e-4

Apply = Callable[[torch.Tensor], torch.Tensor]


def symmetric_product(triangle: torch.Tensor) -> Apply:
    """X → G·X in float32 (up to a constant), for G given by its lower triangle, of which the upper is not filled in."""
    m, scale = len(triangle), float(triangle.diagonal().max()) or 1.0
    safe = 1e-15 < scale < 1e15
    single = (triangle if safe else triangle / scale).to(torch.float32)
    panels = [(left, min(left + _PANEL, m)) for left in range(0, m, _PANEL)]
    corners = []
    for left, right in panels:
        lower = torch.tril(single[left:right, left:right])
        corners.append(lower + torch.tril(lower, -1).T)

    def product(block: torch.Tensor) -> torch.Tensor:
        result = torch.zeros_like(block)
        for (left, right), corner in zip(panels, corners, strict=True):
            result[left:right].addmm_(corner, block[left:right])
            if left:
                rows = single[left:right, :left]
                result[left:right].addmm_(rows, block[:left])
                result[:left].addmm_(rows.T, block[left:right])
        return result

    return product


def leading_directions(
    product: Apply, m: int, count: int, *, start: torch.Tensor | None = None, device: torch.device | None = None
) -> torch.Tensor:
    """Orthonormal eigenvectors of the largest eigenvalues of a positive semi-definite G, (m, ≥ count), float32.

    `product` computes G·X; `start` (m, ≤ count + 8) is where to begin. The subspace of the first `count` is accurate
    to about `TOLERANCE` in its share; where eigenvalues at its edge coincide, any of their vectors is as good. The
    columns after them are there to start the next search from.
    """
    width = min(count + _EXTRA, m)
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(m, width, generator=generator).to(device or "cpu")
    if start is not None:
        block[:, : start.shape[1]] = start[:, :width]
        block[:, start.shape[1] :] *= m**-0.5
    block = torch.linalg.qr(block)[0]
    for _ in range(_MOST_ROUNDS):
        rotated, turn = _round(product, block, count)
        overlap = float((block[:, :count].T @ rotated[:, :count]).square().sum()) / count
        block = rotated
        if min(turn, 1 - overlap) < TOLERANCE:
            break
    return block


def _round(product: Apply, block: torch.Tensor, count: int) -> tuple[torch.Tensor, float]:
    """The leading Ritz vectors of the Krylov space of `block`, as many as it has columns, largest first.

    Beside them a bound on the share of the first `count` that is still wrong, by Davis & Kahan: the square of their
    residual over their gap to the next Ritz value.
    """
    parts, images = [block], [product(block)]
    while len(parts) <= _POWERS and sum(part.shape[1] for part in parts) + block.shape[1] <= len(block):
        fresh = images[-1]
        for _ in range(2):  # twice is enough (Parlett & Kahan)
            for part in parts:
                fresh = fresh - part @ (part.T @ fresh)
        fresh = torch.linalg.qr(fresh)[0]
        parts.append(fresh)
        images.append(product(fresh))
    basis, image = torch.cat(parts, dim=1), torch.cat(images, dim=1)
    projected = basis.T @ image
    values, vectors = torch.linalg.eigh((projected + projected.T) / 2)
    values, vectors = values.flip(0), vectors.flip(1)[:, : block.shape[1]]
    ritz, top = basis @ vectors, vectors[:, :count]
    residual = float((image @ top - ritz[:, :count] * values[:count]).square().sum())
    gap = float(values[count - 1] - values[count]) if count < len(values) else 0.0
    return ritz, residual / gap**2 / count if gap > 0 else 1.0
