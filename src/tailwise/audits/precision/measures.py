"""What moved between two spectra of one matrix."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

#: Of the bootstrap; its own error is then 6 %.
_RESAMPLES = 200
#: Shares of a normal law below ∓1 σ. Half of the way between these quantiles is the standard error; the standard
#: deviation of resamples would be that of a few wild ones, since 1/x of a tail of few eigenvalues has no variance.
_ONE_SIGMA = (0.15866, 0.84134)


def spectral_distance(before: Spectrum, after: Spectrum) -> float:
    """Wasserstein-1 distance of ln λ: the mean |ln λ'_i − ln λ_i| over sorted spectra of equal length.

    What neither spectrum resolves counts as equal: λ below both error bounds, or below the rounding of the largest,
    is raised to that floor.
    """
    top = max(float(before.eigenvalues[-1]), float(after.eigenvalues[-1]))
    floor = max(before.error_bound, after.error_bound, top * before.m * float(np.finfo(np.float64).eps))
    if floor <= 0:
        return 0.0
    old, new = (np.log(np.maximum(s.eigenvalues, floor)) for s in (before, after))
    return float(np.mean(np.abs(new - old)))


def stable_rank_change(before: Spectrum, after: Spectrum) -> float | None:
    """(R' − R)/R of the stable rank R = Σλ/λ_max."""
    ranks = [float(s.eigenvalues.sum() / s.eigenvalues[-1]) if s.eigenvalues[-1] > 0 else 0.0 for s in (before, after)]
    return ranks[1] / ranks[0] - 1 if ranks[0] > 0 and ranks[1] > 0 else None


def shift_error(before: tuple[Spectrum, TailFit], after: tuple[Spectrum, TailFit]) -> float | None:
    """Standard error of α' − α of two `top` fits: a bootstrap of eigenvalues paired by rank.

    Each resample draws the same ranks from both spectra, so that the noise of sampling that they share cancels: the
    unpaired error √(σ² + σ'²) would be far too large. Most of what is left is that of λ_ref, the edge of the tail.
    Ranks hide some of the scatter: where a format reorders many eigenvalues, the true error is up to twice as large.
    """
    (old, first), (new, second) = before, after
    if not (first.ok and second.ok):
        return None
    if first.k != second.k or len(old.eigenvalues) != len(new.eigenvalues):
        return math.hypot(first.sigma, second.sigma)
    ranks = _largest_of_resamples(len(old.eigenvalues), first.k)
    alphas = []
    for spectrum in (old, new):
        lowest = float(spectrum.eigenvalues[spectrum.eigenvalues > 0][0])
        tails = np.log(np.maximum(spectrum.eigenvalues, lowest))[ranks]
        spread = (tails - tails[:, :1]).mean(axis=1)
        alphas.append(1 + 1 / np.where(spread > 0, spread, np.nan))
    moved = alphas[1] - alphas[0]
    moved = moved[np.isfinite(moved)]
    if len(moved) <= _RESAMPLES / 2:
        return None
    low, high = np.quantile(moved, _ONE_SIGMA)
    return float(high - low) / 2


@lru_cache(maxsize=64)
def _largest_of_resamples(m: int, k: int) -> NDArray[np.int64]:
    """The k largest of m ranks drawn with replacement, ascending, (resamples, k).

    Made from the largest order statistics of m uniforms, one after the other: U_(m) = V^(1/m), and so on.
    """
    rng = np.random.default_rng([m, k])
    logs = np.log(rng.random((_RESAMPLES, k))) / np.arange(m, m - k, -1)
    largest = np.exp(np.cumsum(logs, axis=1))
    ranks = np.minimum((largest * m).astype(np.int64), m - 1)
    return np.ascontiguousarray(ranks[:, ::-1])
