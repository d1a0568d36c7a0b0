"""W against itself with its entries in random order: what its correlations add. Needs `randomize` ≥ 1."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.spectrum.marchenko_pastur import Bulk
from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

_WW = "WeightWatcher 0.7"


@metric("mean over permutations of # λ > λ₊ + Tracy-Widom margin of permuted W", source=_WW, unit="count")
def num_traps(permuted_bulks: Sequence[Bulk | None]) -> float:
    """Correlation traps: spikes that remain when the entries are permuted, so made by single large weights."""
    counts = [bulk.num_spikes for bulk in permuted_bulks if bulk is not None]
    return float(np.mean(counts)) if counts else float("nan")


@metric(
    "√(½[KL(p‖q̄) + KL(r‖q̄)]), p, r = λ/Σλ of W and permuted W, q̄ = (p + r)/2",
    source="Lin 1991; " + _WW,
    unit="√nats",
)
def rand_distance(spectrum: Spectrum, permuted: Sequence[Spectrum]) -> float:
    """Jensen-Shannon distance of the rank-ordered eigenvalues of W and permuted W, in [0, 0.833]."""
    return float(np.mean([_jensen_shannon(spectrum, other) for other in permuted]))


@metric("1 − rand_distance", source=_WW)
def one_minus_rd(spectrum: Spectrum, permuted: Sequence[Spectrum]) -> float:
    """Closeness to permuted W. Sources disagree on whether high is good; rank nothing by it alone."""
    return 1.0 - rand_distance(spectrum, permuted)


@metric("max permuted λ / λ_max, of the first permutation", source=_WW)
def ww_softrank(spectrum: Spectrum, permuted: Sequence[Spectrum]) -> float:
    """Largest eigenvalue of permuted W relative to that of W."""
    top = float(spectrum.eigenvalues[-1])
    return float(permuted[0].eigenvalues[-1]) / top if top > 0 else float("nan")


@metric("λ_max − max permuted λ, of the first permutation", source=_WW, unit="λ")
def ww_maxdist(spectrum: Spectrum, permuted: Sequence[Spectrum]) -> float:
    """Distance of the largest eigenvalues of W and permuted W."""
    return float(spectrum.eigenvalues[-1] - permuted[0].eigenvalues[-1])


def _jensen_shannon(one: Spectrum, other: Spectrum) -> float:
    if one.eigenvalues[-1] == 0:
        return float("nan")
    p = one.eigenvalues / one.eigenvalues.sum()
    r = other.eigenvalues / other.eigenvalues.sum()
    middle = (p + r) / 2
    divergence = _kl(p, middle) + _kl(r, middle)
    return float(np.sqrt(max(divergence, 0.0) / 2))


def _kl(p: np.ndarray[tuple[int], np.dtype[np.float64]], q: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    positive = p > 0
    return float(np.sum(p[positive] * np.log(p[positive] / q[positive])))


@metric("(alpha of permuted W), mean over permutations", source="this project")
def alpha_permuted(permuted_tails: Sequence[TailFit]) -> float:
    """The exponent that the entries alone, without their correlations, would give."""
    values = [fit.alpha for fit in permuted_tails if fit.ok]
    return float(np.mean(values)) if values else float("nan")
