"""The best λ_min of a power law by Kolmogorov-Smirnov distance, exactly, over every candidate.

For each candidate i the exponent is α_i = 1 + k/(Σ_{j≥i} ln x_j − k ln x_i), k = N − i, and the distance is
    D_i = max_{j ≥ i} |1 − (x_j/x_i)^{1−α_i} − (j−i)/k|        (D_i = 1 where α_i ≤ 1).
Suffix sums give all α_i in O(N). D_i over a few j is a lower bound of D_i, so candidates are tried in the order of
their bound and the scan ends when the next bound exceeds the best distance found: the result is that of the dense
O(N²) scan (WeightWatcher's `WWFit`), in milliseconds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]

#: Fractions of the tail probed for the lower bound: dense near λ_min, where real spectra bend.
_COARSE = np.array([0.02, 0.06, 0.12, 0.2, 0.3, 0.42, 0.56, 0.72, 0.9])
_FINE = np.linspace(0.0, 1.0, 66)[1:-1]


def scan(
    logs: Vector, allowed: NDArray[np.bool_] | None = None, dust: Vector | None = None
) -> tuple[int, float, float] | None:
    """The (index, alpha, distance) of the smallest D_i over 0 ≤ i ≤ N − 2; the first one of equals.

    `logs`: ln x, ascending, shape (N,). `allowed`: mask (N − 1,) of the candidates. `dust`, (N − 1,): mean
    spreads up to which a tail counts as equal values. None where no candidate has α > 1 and a finite value.
    """
    alphas = exponents(logs, dust)
    candidates = np.flatnonzero(np.isfinite(alphas) & (True if allowed is None else allowed))
    if len(candidates) == 0:
        return None
    bounds = lower_bounds(logs, alphas, candidates, _COARSE)
    order = np.argsort(bounds, kind="stable")
    candidates, bounds = candidates[order], bounds[order]
    best_index, best = -1, np.inf
    # Tighten in growing batches: most candidates never get past the coarse bound.
    start, size = 0, 64
    while start < len(candidates) and bounds[start] <= best:
        batch = candidates[start : start + size][bounds[start : start + size] <= best]
        fine = lower_bounds(logs, alphas, batch, _FINE)
        for slot in np.argsort(fine, kind="stable"):
            if fine[slot] > best:
                break
            index = int(batch[slot])
            distance, _ = ks_at(logs, index, alphas[index])
            if distance < best or (distance == best and index < best_index):
                best_index, best = index, distance
        start, size = start + size, size * 2
    return best_index, float(alphas[best_index]), best


def exponents(logs: Vector, least: Vector | None = None) -> Vector:
    """α_i for every λ_min = x_i, shape (N − 1,); inf where the tail has no spread."""
    n = len(logs)
    counts = np.arange(n, 1, -1, dtype=np.float64)  # k for i = 0 … N−2
    suffix = np.cumsum(logs[::-1])[::-1][:-1]
    spread = suffix - counts * logs[:-1]
    # Cancellation leaves dust where all values are equal.
    dust = 1e-12 * np.maximum(1.0, np.abs(suffix))
    if least is not None:
        dust = np.maximum(dust, counts * least)
    with np.errstate(divide="ignore"):
        return np.where(spread > dust, 1.0 + counts / np.where(spread > dust, spread, 1.0), np.inf)


def lower_bounds(logs: Vector, alphas: Vector, candidates: NDArray[np.intp], fractions: Vector) -> Vector:
    """max of |F_fit − F_emp| over a few points of each candidate's tail: never above D_i."""
    n = len(logs)
    counts = (n - candidates)[:, None]  # (c, 1)
    offsets = (fractions * counts).astype(np.intp)  # (c, p)
    return _gaps(logs, candidates[:, None], offsets, alphas[candidates][:, None], counts).max(axis=1)  # type: ignore[no-any-return]


def _gaps(
    logs: Vector, start: NDArray[np.intp], offsets: NDArray[np.intp], alpha: Vector, counts: NDArray[np.intp]
) -> Vector:
    fitted = -np.expm1((1.0 - alpha) * (logs[start + offsets] - logs[start]))
    return np.abs(fitted - offsets / counts)  # type: ignore[no-any-return]


def ks_at(logs: Vector, index: int, alpha: float) -> tuple[float, float]:
    """One-sided (WeightWatcher's) and two-sided KS distance of the tail from `index` on."""
    tail = logs[index:]
    k = len(tail)
    fitted = -np.expm1((1.0 - alpha) * (tail - tail[0]))
    steps = np.arange(k, dtype=np.float64) / k
    gap = fitted - steps
    one_sided = float(np.max(np.abs(gap)))
    two_sided = max(one_sided, float(np.max(np.abs(gap - 1.0 / k))))
    return one_sided, two_sided


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
