"""Whether another law describes a tail better than the power law: likelihood ratios.

As Clauset, Shalizi & Newman 2009 (§5, appendix C) have it: both laws are fitted to the tail by maximum likelihood, and
the sum of the log-ratios of their densities is held against its own scatter (Vuong 1989). A truncated power law holds
the pure one as a special case, so there twice the ratio is χ² with one degree of freedom.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special
from scipy.integrate import quad
from scipy.optimize import minimize

Vector = NDArray[np.float64]
Law = Literal["lognormal", "exponential", "truncated"]
LAWS: tuple[Law, ...] = ("lognormal", "exponential", "truncated")
#: Values below which a ratio says nothing.
_FEWEST = 10


@dataclass(frozen=True)
class Rival:
    """A law beside the power law."""

    ratio: float  # in standard deviations; above 0 the power law is the likelier, below 0 the rival
    p: float  # chance of a ratio this far from 0 where both describe the tail equally well


def rivals(tail: Vector, alpha: float) -> Mapping[Law, Rival] | None:
    """Every law of `LAWS` against the power law of exponent `alpha` above the tail's first value.

    `tail` ascends, is > 0 and begins at λ_min. None where it has fewer than 10 values or no spread.
    """
    if len(tail) < _FEWEST or not tail[0] < tail[-1] or not alpha > 1:
        return None
    logs = np.log(tail / tail[0])
    power = math.log(alpha - 1) - alpha * logs  # log-densities of λ/λ_min
    return {
        "lognormal": _vuong(power - _lognormal(logs)),
        "exponential": _vuong(power - _exponential(np.exp(logs))),
        "truncated": _nested(tail, alpha),
    }


def _vuong(differences: Vector) -> Rival:
    """Sum of pointwise log-ratios, over what it would scatter if both laws were equally far from the truth."""
    count = len(differences)
    spread = float(differences.std()) * math.sqrt(count)
    if not spread > 0:
        return Rival(0.0, 1.0)
    ratio = float(differences.sum()) / spread
    return Rival(ratio, math.erfc(abs(ratio) / math.sqrt(2)))


def _nested(tail: Vector, alpha: float) -> Rival:
    truncated = fit_truncated(tail, alpha)
    gain = 0.0 if truncated is None else max(2 * len(tail) * truncated.gain, 0.0)
    return Rival(-math.sqrt(gain), float(special.chdtrc(1, gain)))


def _exponential(scaled: Vector) -> Vector:
    """Log-density of the exponential law above 1, its rate by maximum likelihood."""
    rate = 1 / float(np.mean(scaled - 1))
    density: Vector = math.log(rate) - rate * (scaled - 1)
    return density


def _lognormal(logs: Vector) -> Vector:
    """Log-density of the lognormal law cut off below 1, its parameters by maximum likelihood."""

    def density(parameters: Vector) -> Vector:
        mu, sigma = float(parameters[0]), math.exp(float(parameters[1]))
        inside = -0.5 * ((logs - mu) / sigma) ** 2 - math.log(sigma) - 0.5 * math.log(2 * math.pi)
        log_density: Vector = inside - logs - special.log_ndtr(mu / sigma)
        return log_density

    mean, sd = float(logs.mean()), max(float(logs.std()), 1e-6)
    # Far below 0 the cut-off lognormal turns into a power law; further down nothing changes but rounding.
    bounds = [(-200 * sd - 50, float(logs[-1]) + sd), (math.log(sd) - 5, math.log(sd) + 5)]
    starts = [(mean, math.log(sd)), (0.0, math.log(sd * 1.5)), (-5 * mean, math.log(sd * 3))]
    runs = [
        optimize.minimize(lambda x: -float(density(x).sum()), start, method="Nelder-Mead", bounds=bounds,
                          options={"xatol": 1e-7, "fatol": 1e-9, "maxiter": 4000})
        for start in starts
    ]  # fmt: skip
    return density(min(runs, key=lambda run: float(run.fun)).x)


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
