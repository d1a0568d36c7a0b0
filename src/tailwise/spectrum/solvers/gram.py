"""Eigenvalues through the Gram matrix of the short side: n·m² + 4/3·m³ operations, one m × m matrix of memory.

Only the lower triangle is accumulated, so half of the product is never computed: in column panels where torch
multiplies, which exposes no SYRK of its own. The absolute error of every eigenvalue is a small multiple of ε·λ_max, so
singular values below about √ε·σ_max are not resolved; `solve` checks this and falls back to the SVD.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch

#: Adds blockᵀ·block, block (depth × m), to a lower triangle (m × m) of the same type.
AddProduct = Callable[[torch.Tensor, torch.Tensor], None]
#: A lower triangle (m × m) → its eigenvalues, ascending.
Reduce = Callable[[torch.Tensor], torch.Tensor]
#: Wide enough for full BLAS speed; the narrower, the less of the upper triangle is computed in vain.
PANEL = 256


def gram(
    matrix: RowBlocks,
    dtype: torch.dtype,
    device: torch.device,
    scale: float = 1.0,
    *,
    halves: bool | None = None,
    add: AddProduct | None = None,
) -> torch.Tensor:
    """Lower triangle of scale²·WᵀW (tall) or scale²·WWᵀ (wide), (m × m); the upper one is undefined.

    With `halves`, 16-bit weights are multiplied as they are and their products, exact in float32, added in float32:
    the numbers of a conversion to float32 at the speed of a GPU's 16-bit units. So it is done in float32 on a GPU.
    `add` takes the place of torch's products; it is called with every block (depth × m) of the long side.
    """
    m = min(matrix.rows, matrix.cols)
    result = torch.zeros(m, m, dtype=dtype, device=device)
    halves = (dtype is torch.float32 and device.type == "cuda") if halves is None else halves
    for block in long_side_blocks(matrix, dtype, device, scale, halves=halves):
        (add or add_product)(result, block)
    return result


def add_product(triangle: torch.Tensor, block: torch.Tensor) -> None:
    """Add blockᵀ·block to a lower triangle, by torch; halves are multiplied exactly in float32."""
    m = len(triangle)
    for left in range(0, m, PANEL):
        right = min(left + PANEL, m)
        part, across = triangle[left:right, :right], block[:, left:right].T
        if block.dtype is triangle.dtype:
            part.addmm_(across, block[:, :right])
        else:
            part.add_(_product_of_halves(across, block[:, :right]))


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


#: Bytes of stored weights in one block. Large enough for full BLAS speed, small beside a Gram matrix.
BLOCK_BYTES = 4 << 20
#: Rows of the contraction per product; below about 256 the BLAS rate falls.
MIN_DEPTH = 512
#: Rows of the contraction per product at most: a sum of blocks errs less than one long sum.
MAX_DEPTH = 1024
#: Types whose products are exact in float32: 8 or 11 digits of the significand times as many are fewer than 24.
HALVES = (torch.bfloat16, torch.float16)


class RowBlocks(Protocol):
    """A matrix (rows × cols) that can be read in row blocks, more than once."""

    rows: int
    cols: int

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """The rows from first to last in the stored dtype, in blocks of about `max_bytes` at most."""
        ...


class DenseMatrix:
    """A tensor in memory as `RowBlocks`."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor
        self.rows, self.cols = tensor.shape

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """Views of the tensor's rows."""
        step = max(1, max_bytes // max(1, self.cols * self.tensor.element_size()))
        for start in range(0, self.rows, step):
            yield self.tensor[start : start + step]


def gather(matrix: RowBlocks) -> torch.Tensor:
    """The whole matrix in its stored dtype, (rows × cols)."""
    if isinstance(matrix, DenseMatrix):
        return matrix.tensor
    whole: torch.Tensor | None = None
    row = 0
    for block in matrix.row_blocks(BLOCK_BYTES):
        if whole is None:
            whole = torch.empty(matrix.rows, matrix.cols, dtype=block.dtype, device=block.device)
        whole[row : row + len(block)] = block
        row += len(block)
    assert whole is not None  # noqa: S101 - a matrix has at least one row
    return whole


def long_side_blocks(
    matrix: RowBlocks, dtype: torch.dtype, device: torch.device, scale: float = 1.0, *, halves: bool = False
) -> Iterator[torch.Tensor]:
    """Blocks (depth × m) that stack to scale·W if it is tall and to scale·Wᵀ if it is wide, in `dtype` on `device`.

    With `halves`, what is stored in 16 bits stays so. A tall matrix is streamed; of a wide one the stored form is held,
    since its columns are scattered on disk.
    """

    def convert(block: torch.Tensor) -> torch.Tensor:
        if halves and scale == 1.0 and block.dtype in HALVES:
            return block.to(device)
        return _convert(block, dtype, device, scale)

    if matrix.rows >= matrix.cols:
        waiting: list[torch.Tensor] = []
        for block in _small(matrix.row_blocks(BLOCK_BYTES)):
            waiting.append(block)
            if sum(map(len, waiting)) >= MIN_DEPTH:
                yield convert(torch.cat(waiting) if len(waiting) > 1 else waiting[0])
                waiting = []
        if waiting:
            yield convert(torch.cat(waiting))
        return
    whole = gather(matrix)
    for start in range(0, matrix.cols, MIN_DEPTH):
        yield convert(whole[:, start : start + MIN_DEPTH]).T


def _small(blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """The same rows in blocks of about `BLOCK_BYTES`; a source may hand out larger ones."""
    for block in blocks:
        row_bytes = max(1, block.shape[1] * block.element_size())
        step = min(MAX_DEPTH, max(1, BLOCK_BYTES // row_bytes))
        for start in range(0, len(block), step):
            yield block[start : start + step]


def _convert(block: torch.Tensor, dtype: torch.dtype, device: torch.device, scale: float) -> torch.Tensor:
    moved = block.to(device)
    # A scale is there because the values do not fit `dtype`, so it comes before the conversion.
    return moved.to(dtype) if scale == 1.0 else (moved.to(torch.float64) * scale).to(dtype)
