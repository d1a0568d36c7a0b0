"""What pure noise of the same shape would show: the null against which a fit is read.

Alpha of a Gaussian matrix depends on its shape and on the estimator (top 10 %: 6.6 at 512 × 512, 14.6 at
2048 × 256), so a fixed threshold is not portable; the baseline is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from tailwise.core.recipe import Precision
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import RowBlocks, gather
from tailwise.spectrum.spectrum import Spectrum, pool


def gaussian_spectrum(rows: int, cols: int, rng: np.random.Generator) -> Spectrum:
    """The spectrum of a rows × cols matrix of independent N(0, 1) entries, without making the matrix.

    Householder steps turn a Gaussian matrix into a bidiagonal one of independent chi variables (Dumitriu & Edelman
    2002, β = 1), so the law is exact and the cost m² instead of n·m².
    """
    n, m = max(rows, cols), min(rows, cols)
    diagonal = np.sqrt(rng.chisquare(np.arange(n, n - m, -1)))
    below = np.sqrt(rng.chisquare(np.arange(m - 1, 0, -1))) if m > 1 else np.empty(0)
    main = diagonal**2
    main[1:] += below**2
    values = eigvalsh_tridiagonal(main, diagonal[:-1] * below, lapack_driver="sterf") if m > 1 else main
    return Spectrum(np.sort(np.maximum(values, 0.0)), rows, cols, solver="gaussian")


@lru_cache(maxsize=4)
def gaussian_spectra(rows: int, cols: int, slices: int, replicas: int, seed: int) -> tuple[Spectrum, ...]:
    """`replicas` seeded noise spectra of a shape; the same for every matrix of that shape."""
    return tuple(
        pool([gaussian_spectrum(rows, cols, stream) for stream in _streams(rows, cols, seed, replica, slices)])
        for replica in range(replicas)
    )


def _streams(rows: int, cols: int, seed: int, replica: int, slices: int) -> list[np.random.Generator]:
    shape = (max(rows, cols), min(rows, cols))
    return [np.random.default_rng([seed, replica, index, *shape]) for index in range(slices)]


def mean_and_sd(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean and sample standard deviation of the finite values; NaN where there are too few."""
    finite = values[np.isfinite(values)]
    if len(finite) < 2:
        return float("nan"), float("nan")
    return float(finite.mean()), float(finite.std(ddof=1))


#: Permuted spectra are noise: float32 errors below this share of the median λ vanish beside their scatter.
NOISE_TOLERANCE = 1e-3


def permuted_spectrum(matrix: RowBlocks, *, seed: int, replica: int, device: str = "cpu") -> Spectrum:
    """The spectrum of W with its entries in random order: what is left when all correlations are gone.

    Computed in float32, since one permutation differs from the next by far more than that; in float64 where a few
    huge entries would drown the rest.
    """
    weights = gather(matrix)
    # Shuffled as integers, in a copy: it works for every stored type and needs no index array.
    bits = _bits(weights).cpu().numpy().flatten()
    np.random.default_rng([seed, replica]).shuffle(bits)
    shuffled = torch.from_numpy(bits).view(weights.dtype).view(weights.shape)
    fast = solve(shuffled, precision="float32", device=device)
    if fast.error_bound <= NOISE_TOLERANCE * float(np.median(fast.eigenvalues)):
        return fast
    return solve(shuffled, precision="float64", device=device)


def window_spectrum(
    matrix: RowBlocks, *, seed: int, window: int, count: int, precision: Precision, device: str = "cpu"
) -> Spectrum:
    """The pooled spectrum of `count` square windows of W (FARMS: fixed-aspect-ratio sub-sampling, 2025).

    Windows of `window` × `window` (at most m × m) lie at seeded random places, so that every matrix is read at the
    same aspect ratio 1. The number of windows moves alpha; it belongs to the recipe.
    """
    weights = gather(matrix)
    side = min(window, matrix.rows, matrix.cols)
    rng = np.random.default_rng([seed, matrix.rows, matrix.cols])
    tops = rng.integers(0, matrix.rows - side + 1, size=count)
    lefts = rng.integers(0, matrix.cols - side + 1, size=count)
    return pool(
        [
            solve(weights[top : top + side, left : left + side], precision=precision, device=device)
            for top, left in zip(tops.tolist(), lefts.tolist(), strict=True)
        ]
    )


def _bits(tensor: torch.Tensor) -> torch.Tensor:
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    return tensor.contiguous().view(kind)
