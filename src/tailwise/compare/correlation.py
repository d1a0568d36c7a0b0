"""Rank correlation of a few models' numbers with their scores, and how little a few models can say.

Families have few members, where the usual intervals fail: a bootstrap of five models in perfect order gives [1, 1].
So the interval comes from inverting the test: it holds every strength of association under which the observed value
is no surprise (2.5 % on either side). Association is that of a Gaussian copula; the margins do not matter, since only
ranks are used.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import kendalltau, rankdata, spearmanr

#: Below this, even perfect order has a p of 8 % or more, and no interval is given.
MIN_MODELS = 5
#: Above this the classical standard errors serve, and simulation only costs time.
MOST_SIMULATED = 20
_DRAWS = 4000
_STEPS = 16  # of the bisection for an end: to 1e−4

Kind = Literal["kendall", "spearman"]


@dataclass(frozen=True)
class Correlation:
    """One metric against the scores."""

    metric: str
    kind: Kind
    value: float | None  # None: fewer than two different values on one side
    low: float | None  # 95 % interval; None below `MIN_MODELS`
    high: float | None
    p: float | None  # two-sided; exact for small families without ties
    n: int


def correlation(metric: str, kind: Kind, numbers: Sequence[float], scores: Sequence[float]) -> Correlation:
    """Kendall's τ_b or Spearman's ρ of `numbers` with `scores`."""
    n = len(numbers)
    if n < 2 or len(set(numbers)) < 2 or len(set(scores)) < 2:
        return Correlation(metric, kind, None, None, None, None, n)
    found = kendalltau(numbers, scores) if kind == "kendall" else spearmanr(numbers, scores)
    value = float(found.statistic)
    # scipy's p of ρ is a t approximation, which is 0 for perfect order however few the models.
    simulated = kind == "spearman" and n <= MOST_SIMULATED
    p = _simulated_p(n, value) if simulated else float(found.pvalue)
    low, high = interval(kind, n, round(value, 12)) if n >= MIN_MODELS else (None, None)
    return Correlation(metric, kind, value, low, high, p, n)


def interval(kind: Kind, n: int, value: float) -> tuple[float, float]:
    """95 % interval of the family's τ or ρ."""
    return _inverted(kind, n, value) if n <= MOST_SIMULATED else _classical(kind, n, value)


def _simulated_p(n: int, value: float) -> float:
    draws = _statistics("spearman", n, 0.0)
    return float((1 + np.count_nonzero(np.abs(draws) >= abs(value) - 1e-9)) / (1 + len(draws)))


def _classical(kind: Kind, n: int, value: float) -> tuple[float, float]:
    """Fisher's z with the standard errors of Bonett & Wright 2000 (ρ) and Fieller et al. 1957 (τ)."""
    error = np.sqrt(0.437 / (n - 4)) if kind == "kendall" else np.sqrt((1 + value**2 / 2) / (n - 3))
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - 1.96 * error)), float(np.tanh(middle + 1.96 * error))


@lru_cache(maxsize=256)
def _inverted(kind: Kind, n: int, value: float) -> tuple[float, float]:
    def surprise_above(rho: float) -> bool:
        return bool(np.mean(_statistics(kind, n, rho) >= value - 1e-9) <= 0.025)

    def surprise_below(rho: float) -> bool:
        return bool(np.mean(_statistics(kind, n, rho) <= value + 1e-9) <= 0.025)

    low, high = _edge(surprise_above, -1.0, 1.0), _edge(surprise_below, 1.0, -1.0)
    return _population(kind, low), _population(kind, high)


def _edge(surprises: Callable[[float], bool], outer: float, inner: float) -> float:
    """The association nearest to `outer` under which the observed order is no surprise."""
    if not surprises(outer):
        return outer
    for _ in range(_STEPS):
        middle = (outer + inner) / 2
        outer, inner = (middle, inner) if surprises(middle) else (outer, middle)
    return inner


def _population(kind: Kind, rho: float) -> float:
    """τ = 2/π·asin ρ and ρ_s = 6/π·asin(ρ/2) of a Gaussian copula (Kruskal 1958)."""
    return float(2 / np.pi * np.arcsin(rho)) if kind == "kendall" else float(6 / np.pi * np.arcsin(rho / 2))


@lru_cache(maxsize=1024)
def _statistics(kind: Kind, n: int, rho: float) -> NDArray[np.float64]:
    """The statistic of `_DRAWS` families of n models with association rho."""
    x, noise = _normals(n)
    y = rho * x + np.sqrt(1 - rho**2) * noise
    if kind == "spearman":
        ranks = [rankdata(side, axis=1) - (n + 1) / 2 for side in (x, y)]
        return np.asarray((ranks[0] * ranks[1]).sum(axis=1) / (n * (n**2 - 1) / 12))
    total = np.zeros(_DRAWS)
    for i in range(n - 1):
        total += (np.sign(x[:, i + 1 :] - x[:, i : i + 1]) * np.sign(y[:, i + 1 :] - y[:, i : i + 1])).sum(axis=1)
    return np.asarray(total / (n * (n - 1) / 2))


@lru_cache(maxsize=16)
def _normals(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng([n, 20210715])
    return rng.standard_normal((_DRAWS, n)), rng.standard_normal((_DRAWS, n))
