"""What pure noise of the same shape would show: the null against which a fit is read.

Alpha of a Gaussian matrix depends on its shape and on the estimator (top 10 %: 6.6 at 512 × 512, 14.6 at
2048 × 256), so a fixed threshold is not portable; the baseline is.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

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
