"""Two matrices of one shape: their difference, and how alike they are."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from tailwise.spectrum.solvers.row_blocks import RowBlocks, long_side_blocks
from tailwise.spectrum.solvers.gram import gram


class Subtracted:
    """W − W₀ as `RowBlocks`: read together, block by block, in float64."""

    def __init__(self, before: RowBlocks, after: RowBlocks) -> None:
        self._before, self._after = before, after
        self.rows, self.cols = after.rows, after.cols

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """Rows of the difference."""
        blocks = self._before.row_blocks(max_bytes), self._after.row_blocks(max_bytes)
        for old, new in _together(*blocks):
            yield new.to(torch.float64) - old.to(torch.float64)


def _together(
    first: Iterator[torch.Tensor], second: Iterator[torch.Tensor]
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Blocks of equal height from two streams that cut the same rows differently."""
    one, other = next(first, None), next(second, None)
    while one is not None and other is not None:
        height = min(len(one), len(other))
        yield one[:height], other[:height]
        one = one[height:] if len(one) > height else next(first, None)
        other = other[height:] if len(other) > height else next(second, None)


def similarity(before: RowBlocks, after: RowBlocks, directions: int, device: torch.device) -> dict[str, float]:
    """CKA, and the overlap of the leading singular subspaces on the input and the output side.

    CKA = ⟨W₀ᵀW₀, WᵀW⟩ / (‖W₀ᵀW₀‖_F ‖WᵀW‖_F): linear CKA (Kornblith et al. 2019) of the outputs W₀x and Wx over white
    inputs x, needing no data. Overlap = ‖V₀ᵀV‖_F² / k of the k leading directions, in [0, 1]; two random subspaces of
    n dimensions have k/n (Hu et al. 2021, LoRA, eq. 4).
    """
    grams = [gram(side, torch.float64, device) for side in (before, after)]
    tall = after.rows >= after.cols
    norms = [_inner(g, g) ** 0.5 for g in grams]
    if min(norms) == 0:
        return {}
    shared = _inner(*grams) if tall else _cross_norm(before, after, device)
    numbers = {"cka": min(1.0, shared / (norms[0] * norms[1]))}
    tops = [_leading(g, directions) for g in grams]
    k = min(len(values) for values, _ in tops)
    (sigma0, short0), (sigma, short) = ((values[:k].sqrt(), vectors[:, :k]) for values, vectors in tops)
    product = torch.zeros(k, k, dtype=torch.float64, device=device)
    for old, new in _both_long(before, after, device):
        product += (old @ short0).T @ (new @ short)
    near = float((short0.T @ short).square().sum()) / k
    far = float((product / sigma0[:, None] / sigma[None, :]).square().sum()) / k
    inputs, outputs = (near, far) if tall else (far, near)
    return numbers | {"overlap_input": min(1.0, inputs), "overlap_output": min(1.0, outputs), "directions": float(k)}


def _both_long(
    before: RowBlocks, after: RowBlocks, device: torch.device
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return _together(*(long_side_blocks(side, torch.float64, device) for side in (before, after)))


def _cross_norm(before: RowBlocks, after: RowBlocks, device: torch.device) -> float:
    """‖W₀Wᵀ‖_F² = ⟨W₀ᵀW₀, WᵀW⟩ of wide matrices, whose WᵀW would be the larger square."""
    cross = torch.zeros(after.rows, after.rows, dtype=torch.float64, device=device)
    for old, new in _both_long(before, after, device):
        cross.addmm_(old.T, new)
    return float(cross.square().sum())


def _inner(one: torch.Tensor, other: torch.Tensor) -> float:
    """Frobenius inner product of two symmetric matrices given by their lower triangles."""
    product = torch.tril(one * other)
    return float(2 * product.sum() - product.diagonal().sum())


def _leading(triangle: torch.Tensor, directions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The leading eigenvalues of a Gram matrix that are not rounding errors, largest first, with their vectors."""
    values, vectors = torch.linalg.eigh(triangle, UPLO="L")
    values, vectors = values.flip(0)[:directions], vectors.flip(1)[:, :directions]
    kept = int((values > values[0] * len(triangle) * torch.finfo(values.dtype).eps).sum())
    return values[:kept], vectors[:, :kept].contiguous()
