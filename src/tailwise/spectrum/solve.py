"""A matrix to its spectrum: the Gram matrix where that is accurate enough, the SVD where it is not."""

from __future__ import annotations

import ctypes
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tailwise.core.recipe import Precision
from tailwise.spectrum.entries import Entries
from tailwise.spectrum.solvers.blas import HERE, Blas
from tailwise.spectrum.solvers.gram import (
    BLOCK_BYTES,
    AddProduct,
    DenseMatrix,
    Reduce,
    RowBlocks,
    eigenvalues_of,
    gram,
)
from tailwise.spectrum.solvers.svd import factor_singular_values, singular_values
from tailwise.spectrum.spectrum import Spectrum

#: Largest error of `singular_entropy` that the Gram route may cause before the SVD is taken.
ENTROPY_TOLERANCE = 1e-9
#: A Gram matrix whose trace lies outside overflowed or lost digits to underflow; W is then rescaled.
SAFE_TRACE = {torch.float64: (1e-200, 1e200), torch.float32: (1e-20, 1e30)}


class NotFiniteError(Exception):
    """W holds NaN or Inf. A value, in effect: the audit turns it into a row with a status."""

    def __init__(self, nans: int, infs: int, where: tuple[int, int]) -> None:
        self.nans, self.infs, self.where = nans, infs, where
        super().__init__(f"{nans} NaN and {infs} Inf, the first at row {where[0]}, column {where[1]}")


class OutOfRangeError(Exception):
    """The eigenvalues, squares of the singular values, leave the range of float64."""


def solve(
    matrix: RowBlocks | torch.Tensor,
    *,
    precision: Precision = "float64",
    device: str = "cpu",
    look: Callable[[torch.Tensor], None] | None = None,
    reduce: Reduce | None = None,
    blas: Blas | None = None,
) -> Spectrum:
    """All eigenvalues of the short-side Gram matrix of `matrix` (2-D).

    In float64 the result is exact to `error_bound`, and the route (Gram or SVD) is chosen by the condition found.
    float32 is twice as fast and always takes the Gram route: eigenvalues below its `error_bound` are noise.
    `look` is called with the Gram matrix (m × m, its lower triangle; scaled by a constant where W's range asks for
    it) before it is reduced; a matrix given by its factors has none. `reduce` takes the place of the reduction of that
    triangle, and may overwrite it. `blas` are the libraries to compute with on a CPU; None: the fastest here.
    Raises `NotFiniteError` if W holds NaN or Inf.
    """
    source = DenseMatrix(matrix) if isinstance(matrix, torch.Tensor) else matrix
    where = torch.device(device)
    factors: Any = getattr(source, "factors", None)
    with torch.no_grad():
        if factors is not None:
            return _from_factors(source, *factors)
        dtype: torch.dtype = getattr(torch, precision)
        if where.type != "cpu":
            blas = Blas()
        elif blas is None:
            blas = HERE(min(source.rows, source.cols), precision)
        return _from_blocks(source, dtype, where, (look, reduce or blas.reduce, blas.add))


def _from_blocks(
    source: RowBlocks,
    dtype: torch.dtype,
    device: torch.device,
    how: tuple[Callable[[torch.Tensor], None] | None, Reduce | None, AddProduct],
) -> Spectrum:
    look, reduce, add = how
    scale = 1.0
    entries, triangle = _seen(source, dtype, device, add)
    if not _safe(triangle, dtype):
        scale = _safe_scale(source)
        entries, triangle = _seen(source, dtype, device, add, scale)
    if look is not None:
        look(triangle)
    energies = triangle.diagonal().to("cpu", torch.float64, copy=True)
    order, weak = entries.order_z(energies), entries.weak_vectors(energies)
    release_memory(len(triangle))
    eigenvalues, zeros = eigenvalues_of(triangle, reduce)
    values = _to_numpy(eigenvalues)
    del triangle
    release_memory(len(values))
    name = str(dtype).removeprefix("torch.")
    relative = _relative_error((source.rows, source.cols), dtype)
    bound = float(values[-1]) * relative
    if dtype is torch.float64 and not _resolved(values[zeros:], bound):
        sigma = _to_numpy(singular_values(source, device, scale))
        # Below the tolerance of the numerical rank, σ is rounding; kept, it would pass for a bulk or a tail.
        sigma[sigma <= sigma[-1] * max(source.rows, source.cols) * np.finfo(np.float64).eps] = 0.0
        # Backward stability of the SVD: |δσ| ≤ c·ε·σ_max, hence |δλ| ≤ 2σ|δσ|.
        bound = 2 * float(sigma[-1]) ** 2 * relative
        made, zeros = _spectrum(source, sigma**2, scale, "svd-float64", bound), _zeros(source, zeros)
        return replace(made, zero_vectors=zeros, weak_vectors=weak, order_z=order)
    if zeros < len(values) and values[zeros] <= bound:
        zeros = _zeros(source, zeros)
    made = _spectrum(source, values, scale, f"gram-{name}", bound)
    return replace(made, zero_vectors=zeros, weak_vectors=weak, order_z=order)


def _seen(
    source: RowBlocks, dtype: torch.dtype, device: torch.device, add: AddProduct, scale: float = 1.0
) -> tuple[Entries, torch.Tensor]:
    """The lower triangle of the Gram matrix, and what the entries say while they go by."""
    entries = Entries()

    def both(triangle: torch.Tensor, block: torch.Tensor) -> None:
        entries.add(block)
        add(triangle, block)

    return entries, gram(source, dtype, device, scale, add=both)


def _zeros(source: RowBlocks, short: int) -> int:
    """Directions that rows or columns of zeros take: `short` on the short side, or what the long side leaves."""
    rows, seen = 0, torch.zeros(source.cols, dtype=torch.bool)
    for block in source.row_blocks(BLOCK_BYTES):
        filled = (block != 0).cpu()
        rows += int(filled.any(dim=1).sum())
        seen |= filled.any(dim=0)
    long = rows if source.rows >= source.cols else int(seen.sum())
    return max(short, min(source.rows, source.cols) - long)


def _spectrum(source: RowBlocks, scaled: NDArray[np.float64], scale: float, solver: str, bound: float) -> Spectrum:
    """Undo the scale: in two steps, since its square may overflow where the eigenvalues do not."""
    with np.errstate(over="ignore", under="ignore"):
        values = scaled / scale / scale
    if not np.isfinite(values[-1]) or (scaled[-1] > 0 and values[-1] < np.finfo(np.float64).tiny):
        raise OutOfRangeError(f"σ_max is {np.sqrt(scaled[-1]) / scale:.1e}, and its square leaves float64; rescale W")
    return Spectrum(values, source.rows, source.cols, 1, solver, bound / scale / scale)


def _from_factors(source: RowBlocks, left: torch.Tensor, right: torch.Tensor) -> Spectrum:
    for factor in (left, right):
        if not bool(torch.isfinite(factor).all()):
            raise _not_finite(DenseMatrix(factor))
    m = min(source.rows, source.cols)
    sigma = _to_numpy(factor_singular_values(left, right))[-m:]
    values = np.concatenate([np.zeros(m - len(sigma)), sigma**2])
    bound = 2 * float(values[-1]) * _relative_error((source.rows, source.cols), torch.float64)
    alive = [int((side != 0).any(dim=1).sum()) for side in (left, right.T)]
    zeros = m if values[-1] == 0 else m - min(m, *alive)
    return Spectrum(values, source.rows, source.cols, 1, "factors-float64", bound, zeros)


def _relative_error(shape: tuple[int, int], dtype: torch.dtype) -> float:
    """Bound on the error of every eigenvalue relative to λ_max, (4·√m + n/512)·ε.

    Rounding errors of the product and of the tridiagonal reduction add up like a random walk (Higham & Mary 2019,
    probabilistic bounds), hence √m, not m; measured errors stay several times below. The sum over blocks of rows is
    bounded in the worst case, since entries of one sign make its errors add up.
    """
    n, m = max(shape), min(shape)
    return (4.0 * math.sqrt(m) + n / 512) * float(torch.finfo(dtype).eps)


def _resolved(values: NDArray[np.float64], bound: float) -> bool:
    """Whether errors of `bound` in λ (ascending, without exact zeros) leave rank and most sensitive metric as they are.

    |δσ| = |δλ|/2σ, and singular_entropy moves by Σ |δσ|·ln(Σσ/σ)/Σσ at most.
    """
    if len(values) == 0:
        return True
    if values[0] <= bound:
        return False
    sigma = np.sqrt(values)
    total = sigma.sum()
    return float(np.sum(bound / (2 * sigma) * np.log(total / sigma)) / total) <= ENTROPY_TOLERANCE


def _safe(triangle: torch.Tensor, dtype: torch.dtype) -> bool:
    low, high = SAFE_TRACE[dtype]
    return low <= float(triangle.diagonal().sum()) <= high


def _safe_scale(source: RowBlocks) -> float:
    """A power of two that brings the largest |entry| to about 1, or `NotFiniteError`."""
    largest = 0.0
    for block in source.row_blocks(BLOCK_BYTES):
        top = float(block.to(torch.float64).abs().max())
        if not np.isfinite(top):
            raise _not_finite(source)
        largest = max(largest, top)
    # A power of two is exact; within ±1000 neither it nor the product leaves float64.
    return 1.0 if largest == 0 else 2.0 ** float(np.clip(-np.round(np.log2(largest)), -1000, 1000))


def _not_finite(source: RowBlocks) -> NotFiniteError:
    nans = infs = row = 0
    first: tuple[int, int] | None = None
    for block in source.row_blocks(BLOCK_BYTES):
        values = block.to(torch.float32) if block.element_size() < 4 else block
        bad = ~torch.isfinite(values)
        if first is None and bool(bad.any()):
            index = torch.nonzero(bad)[0]
            first = (row + int(index[0]), int(index[1]))
        nans += int(torch.isnan(values).sum())
        infs += int(torch.isinf(values).sum())
        row += len(block)
    return NotFiniteError(nans, infs, first or (0, 0))


def _to_numpy(values: torch.Tensor) -> NDArray[np.float64]:
    return values.to("cpu", torch.float64, copy=True).numpy()


#: Smaller matrices free too little to be worth the call.
WORTHWHILE = 1024


@lru_cache(maxsize=1)
def _trimmer() -> Callable[[int], object]:
    if not sys.platform.startswith("linux"):
        return lambda _: None
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # musl has none
    return trim if trim is not None else lambda _: None


def release_memory(side: int) -> None:
    """Return freed blocks to the system after work on a matrix with `side` eigenvalues.

    glibc keeps freed blocks of up to 32 MB in one arena per thread; with two workers that is half of the peak.
    """
    if side >= WORTHWHILE:
        _trimmer()(0)
