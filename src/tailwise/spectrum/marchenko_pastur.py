"""The Marchenko-Pastur law, the bulk of a spectrum fitted by it, and spectra of noise.

For an n × m matrix of independent entries of variance σ² the eigenvalues of WᵀW fill [λ₋, λ₊] with
λ± = σ²(√n ± √m)² = σ²(1 ± 1/√Q)²·n (Marchenko & Pastur 1967). What stands above λ₊ by more than its random
fluctuation (Tracy & Widom 1996; Johnstone 2001) is a spike.

Noise of the same shape is the null against which a fit is read: alpha of a Gaussian matrix depends on its shape and on
the estimator (top 10 %: 6.6 at 512 × 512, 14.6 at 2048 × 256), so a fixed threshold is not portable; the baseline is.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigvalsh_tridiagonal

from tailwise.spectrum.spectrum import Spectrum, pool

#: 99 % point of the Tracy-Widom law for real matrices (β = 1; Bejan 2005, table 1).
TRACY_WIDOM_99 = 2.0234
_GRID = 4096

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Bulk:
    """A Marchenko-Pastur law fitted to the bulk of a spectrum."""

    sigma: float  # standard deviation of the entries of the bulk
    lambda_minus: float
    lambda_plus: float
    spike_edge: float  # λ₊ plus the Tracy-Widom margin
    num_spikes: int
    ks_distance: float  # between the eigenvalues up to the edge and the law


def edges(sigma: float, n: int, m: int) -> tuple[float, float]:
    """(λ₋, λ₊) of an n × m matrix of independent entries of standard deviation `sigma`."""
    return float((sigma * (np.sqrt(n) - np.sqrt(m))) ** 2), float((sigma * (np.sqrt(n) + np.sqrt(m))) ** 2)


def tracy_widom_margin(sigma: float, n: int, m: int) -> float:
    """How far the largest eigenvalue of pure noise passes λ₊ once in a hundred times (Johnstone 2001)."""
    root_n, root_m = np.sqrt(max(n - 1, 1)), np.sqrt(m)
    centre = (root_n + root_m) ** 2
    width = (root_n + root_m) * (1 / root_n + 1 / root_m) ** (1 / 3)
    return float(sigma**2 * (centre + TRACY_WIDOM_99 * width)) - edges(sigma, n, m)[1]


@lru_cache(maxsize=256)
def _table(aspect: float) -> tuple[Vector, Vector]:
    """λ/(nσ²) and its distribution function on a grid that is fine at both edges; `aspect` = m/n ≤ 1."""
    low, high = (1 - np.sqrt(aspect)) ** 2, (1 + np.sqrt(aspect)) ** 2
    # With λ = mid − half·cos θ the square-root edges (and 1/λ at a hard edge) become smooth.
    theta = (np.arange(_GRID) + 0.5) * np.pi / _GRID
    values = (high + low) / 2 - (high - low) / 2 * np.cos(theta)
    density = ((high - low) / 2 * np.sin(theta)) ** 2 / (2 * np.pi * aspect * values)
    mass = np.cumsum(density)
    return values, (mass - density / 2) / mass[-1]


def cdf(eigenvalues: Vector, sigma: float, n: int, m: int) -> Vector:
    """Distribution function of the law at `eigenvalues`."""
    values, mass = _table(m / n)
    return np.interp(eigenvalues / (n * sigma**2), values, mass, left=0.0, right=1.0)


def quantile(probability: float, n: int, m: int) -> float:
    """λ/(nσ²) below which the fraction `probability` of the law lies."""
    values, mass = _table(m / n)
    return float(np.interp(probability, mass, values))


def fit_bulk(eigenvalues: Vector, n: int, m: int) -> Bulk | None:
    """Fit σ so that the median of what lies below the edge is the law's, spikes taken out one round at a time.

    The median is where spikes and heavy tails weigh least, and it identifies σ for square matrices too (Gavish &
    Donoho 2014 use it for the same reason). Where half of the eigenvalues would be taken out there is no such bulk;
    the fit to all of them is kept then, and its `ks_distance` says how poor it is. None where half of the
    eigenvalues are zero. `eigenvalues`: ascending, those of several matrices of the shape if they are pooled.
    """
    total = len(eigenvalues)
    if total < 2 or eigenvalues[(total - 1) // 2] <= 0:
        return None
    spikes, first = 0, _bulk(eigenvalues, total, n, m)
    bulk = first
    while bulk.num_spikes > spikes:
        spikes = bulk.num_spikes
        if spikes > total // 2 or np.median(eigenvalues[: total - spikes]) <= 0:
            return first
        bulk = _bulk(eigenvalues, total - spikes, n, m)
    return bulk


def _bulk(eigenvalues: Vector, inside: int, n: int, m: int) -> Bulk:
    """The law with the median of the `kept` smallest, and what stands above its edge."""
    sigma = _sigma_from_median(eigenvalues[:inside], n, m)
    low, high = edges(sigma, n, m)
    edge = high + tracy_widom_margin(sigma, n, m)
    below = int(np.searchsorted(eigenvalues, edge, side="right"))
    return Bulk(sigma, low, high, edge, len(eigenvalues) - below, _ks(eigenvalues[:below], sigma, n, m))


def _sigma_from_median(bulk: Vector, n: int, m: int) -> float:
    return float(np.sqrt(np.median(bulk) / (n * quantile(0.5, n, m))))


def _ks(bulk: Vector, sigma: float, n: int, m: int) -> float:
    expected = cdf(bulk, sigma, n, m)
    steps = np.arange(len(bulk)) / len(bulk)
    return float(max(np.max(expected - steps), np.max(steps + 1 / len(bulk) - expected)))


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
