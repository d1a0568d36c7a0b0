"""λ_min by the distance from a power law that ends at the largest value, as the package powerlaw has it with `xmax`.

Its likelihood does not know of the end: α is that of `ks`, 1 + k/Σ ln(λ/λ_min). Only its distance does, with
    F(λ) = (1 − (λ/λ_min)^{1−α}) / (1 − (λ_max/λ_min)^{1−α}),
so that another λ_min may be the best one, and α differs by that alone. Every λ_min is tried: O(N²).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tailwise.spectrum.ks_scan import exponents

Vector = NDArray[np.float64]


def scan_truncated(logs: Vector, dust: Vector | None = None) -> tuple[int, float, float] | None:
    """(index, α, D) of the λ_min with the smallest D over 0 ≤ i ≤ N − 2; the first of equals.

    `logs` and `dust` as for `ks_scan.scan`. None where no tail has a spread.
    """
    alphas = exponents(logs, dust)
    best: tuple[int, float, float] | None = None
    for index in np.flatnonzero(np.isfinite(alphas)):
        distance = distance_truncated(logs, int(index), float(alphas[index]))[0]
        if best is None or distance < best[2]:
            best = int(index), float(alphas[index]), distance
    return best


def distance_truncated(logs: Vector, index: int, alpha: float) -> tuple[float, float]:
    """One-sided (as an audit has D) and two-sided distance of the tail from `index` on."""
    tail = logs[index:] - logs[index]
    k, beta = len(tail), alpha - 1.0
    fitted = np.expm1(-beta * tail) / np.expm1(-beta * tail[-1])
    gap = fitted - np.arange(k) / k
    one_sided = float(np.abs(gap).max())
    return one_sided, max(one_sided, float(np.abs(gap - 1.0 / k).max()))
