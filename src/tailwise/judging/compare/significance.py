"""How sure one can be that an exponent, or the layers of a role, changed.

An exponent from a tail of k values has H = Σ ln(λᵢ/λ_min) = k/(α − 1). For k independent Pareto values, λ_min among
them, H is Gamma-distributed with shape k − 1 (Rényi 1953), so the ratio of two such H, each over its shape, follows
Fisher's F with 2(k₀ − 1) and 2(k₁ − 1) degrees of freedom. For large k this is the z of ln(α − 1) with the standard
errors σ/(α − 1) = 1/√k that an audit states; for k of ten it is not, and plain z then finds too much.

Estimators that search for λ_min scatter by more than σ says: among twenty pairs of Gaussian matrices, this z alone
calls at least one changed in 19 to 77 of 100 simulations, by shape, where 5 are allowed. So the change must show
twice: between the tails as fitted, and with both tails cut at the size of the smaller one, where λ_min is not searched
and both are tails. The more cautious of the two counts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import f as fisher
from scipy.stats import false_discovery_control, norm, wilcoxon

from tailwise.audits.rows import Layer
from tailwise.audits.trusted import value_of

#: Square root of more eigenvalues than any matrix has: a standard error that claims them is none.
_MOST_ROOT = 1e6
#: Below this many pairs, the smallest two-sided p of the signed-rank test is above 5 %.
MIN_PAIRS = 6
#: Beyond this, a normal probability is no longer a double.
MAX_Z = 37.0

Fit = tuple[float, int]  # alpha, k
Contrast = tuple[Fit, Fit]


def contrasts(metric: str, before: Layer, after: Layer) -> list[Contrast] | None:
    """The pairs of fits that a change of `metric` must show in, or None where nothing can be claimed."""
    old, new = _fit_of(metric, before), _fit_of(metric, after)
    if old is None or new is None:
        return None
    pairs: list[Contrast] = [(old, new)]
    if metric == "alpha":
        k = min(old[1], new[1])
        one, other = _refit(before, k), _refit(after, k)
        if one is None or other is None:
            return None
        pairs.append((one, other))
    return pairs


def _fit_of(metric: str, layer: Layer) -> Fit | None:
    """Exponent and size of the tail that an audit states through the standard error."""
    alpha, sigma = value_of(layer.row, metric), layer.row.metrics.get(f"{metric}_sigma")
    # Too few eigenvalues for a verdict on the tail are too few for one on its change.
    if layer.row.status != "OK" or alpha is None or not sigma or alpha <= 1:
        return None
    root = (alpha - 1) / sigma
    if root > _MOST_ROOT:
        return None
    k = round(root**2)
    return (alpha, k) if k >= 2 else None


def _refit(layer: Layer, k: int) -> Fit | None:
    """The exponent of the k largest eigenvalues of the spectrum that alpha was fitted to."""
    values = (layer.windows or layer.spectrum).eigenvalues
    top = layer.row.metrics.get("lambda_max")
    if top is not None:  # `ks_clip` leaves out the largest
        values = values[values <= top * (1 + 1e-12)]
    tail = values[values > 0][-k:]
    total = float(np.sum(np.log(tail / tail[0]))) if len(tail) > 1 else 0.0
    return (1 + len(tail) / total, len(tail)) if total > 0 else None


def z_scores(pairs: Sequence[Sequence[Contrast]]) -> NDArray[np.float64]:
    """For each layer the most cautious z over its contrasts, (len(pairs),); 0 where they disagree on the sign."""
    flat = [contrast for layer in pairs for contrast in layer]
    if not flat:
        return np.zeros(0)
    old, new = np.array([c[0] for c in flat], dtype=float).T, np.array([c[1] for c in flat], dtype=float).T
    every = _deviates(old[0], old[1], new[0], new[1])
    ends = np.cumsum([len(layer) for layer in pairs])[:-1]
    return np.array([_cautious(part) for part in np.split(every, ends)])


def _cautious(z: NDArray[np.float64]) -> float:
    return 0.0 if z.min() < 0 < z.max() else float(z[np.argmin(np.abs(z))])


def _deviates(
    a0: NDArray[np.float64], k0: NDArray[np.float64], a1: NDArray[np.float64], k1: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Normal deviates with the tail probabilities of the F test; positive where alpha rose."""
    ratio = (k0 / (a0 - 1) / (k0 - 1)) / (k1 / (a1 - 1) / (k1 - 1))
    degrees = 2 * (k0 - 1), 2 * (k1 - 1)
    up, down = fisher.sf(ratio, *degrees), fisher.cdf(ratio, *degrees)
    # Equal fits have a ratio of one, but the F distribution's median is not one unless k₀ = k₁.
    z = np.where(up < down, norm.isf(up), -norm.isf(down))
    return np.where((a0 == a1) & (k0 == k1), 0.0, np.clip(z, -MAX_Z, MAX_Z))


def discoveries(z: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Which of the z are significant at the false discovery rate `level` (Benjamini & Hochberg 1995)."""
    return rejected(2 * norm.sf(np.abs(z)), level)


def rejected(p: NDArray[np.float64], level: float) -> NDArray[np.bool_]:
    """Which of the hypotheses Benjamini and Hochberg's procedure rejects."""
    return np.asarray(false_discovery_control(p) <= level) if len(p) else np.zeros(0, dtype=bool)


def signed_rank_p(changes: NDArray[np.float64]) -> float | None:
    """Two-sided p of Wilcoxon's signed-rank test over changes that are not zero; None below `MIN_PAIRS`."""
    return float(wilcoxon(changes).pvalue) if len(changes) >= MIN_PAIRS else None
