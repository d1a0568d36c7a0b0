"""The exponentially truncated power law p(λ) ∝ λ^−α e^{−Λλ}, λ ≥ λ_min (Clauset et al. 2009, table 2.1)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import quad
from scipy.optimize import minimize

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class TruncatedFit:
    """Maximum-likelihood exponent and rate, and the log-likelihood per value gained over the pure power law."""

    alpha: float
    rate: float  # Λ, in units of 1/λ
    ks_distance: float
    gain: float  # mean log-likelihood minus that of the pure power law; ≥ 0 up to the optimiser's tolerance


def fit_truncated(tail: Vector, alpha: float) -> TruncatedFit | None:
    """Fit the tail (ascending, > 0, its first value being λ_min), starting from the pure exponent `alpha`.

    None where the tail has fewer than three values or no spread.
    """
    if len(tail) < 3 or tail[0] == tail[-1]:
        return None
    scaled = tail / tail[0]
    mean_log, mean = float(np.mean(np.log(scaled))), float(np.mean(scaled))

    def negative_likelihood(parameters: Vector) -> float:
        exponent, rate = float(parameters[0]), float(np.exp(parameters[1]))
        return exponent * mean_log + rate * mean + _log_mass(exponent, rate, 1.0)

    starts = [(alpha, np.log(rate / mean)) for rate in (1e-3, 0.1, 1.0)]
    runs = [minimize(negative_likelihood, start, method="Nelder-Mead", options=_TIGHT) for start in starts]
    best = min(runs, key=lambda run: float(run.fun))
    exponent, rate = float(best.x[0]), float(np.exp(best.x[1]))
    pure = alpha * mean_log - np.log(alpha - 1.0)
    return TruncatedFit(exponent, rate / float(tail[0]), _ks(scaled, exponent, rate), float(pure - best.fun))


_TIGHT = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 2000}


def _log_mass(alpha: float, rate: float, start: float) -> float:
    """ln ∫_start^∞ x^−α e^{−rate·x} dx, with e^{−rate·start} taken out of the integral for the sake of range."""
    # x = start·e^t spreads the integrand evenly over the decades that a small rate lets through.
    upper = np.log1p(745.0 / (rate * start))
    integral, _ = quad(lambda t: np.exp((1 - alpha) * t - rate * start * np.expm1(t)), 0.0, upper, limit=200)
    return float(np.log(max(integral, 1e-300)) + (1 - alpha) * np.log(start) - rate * start)


def _ks(scaled: Vector, alpha: float, rate: float) -> float:
    grid = np.unique(scaled)
    total = _log_mass(alpha, rate, 1.0)
    survival = np.exp([_log_mass(alpha, rate, float(x)) - total for x in grid])
    below = np.searchsorted(scaled, grid, side="left") / len(scaled)
    upto = np.searchsorted(scaled, grid, side="right") / len(scaled)
    return float(max(np.max(np.abs(1 - survival - below)), np.max(np.abs(1 - survival - upto))))
