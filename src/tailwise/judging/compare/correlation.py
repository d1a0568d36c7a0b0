"""Rank correlation of a few models' numbers with their scores, and how little a few models can say.

Families have few members, where the usual intervals fail: a bootstrap of five models in perfect order gives [1, 1].
So the interval comes from inverting the test: it holds every strength of association under which the observed value
is no surprise (2.5 % on either side). Association is that of a Gaussian copula; the margins do not matter, since only
ranks are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
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
#: Up to so many models every permutation is looked at, above some at random.
MOST_PERMUTED = 8
_PERMUTATIONS = 20_000

Ties = tuple[tuple[int, ...], tuple[int, ...]]

Kind = Literal["kendall", "spearman"]


@dataclass(frozen=True)
class Correlation:
    """One metric against the scores."""

    metric: str
    kind: Kind
    value: float | None  # None: fewer than two different values on one side
    low: float | None  # 95 % interval; None below `MIN_MODELS`
    high: float | None
    p: float | None  # two-sided, by permuting the scores: exact for small families, with ties too
    n: int


def correlation(metric: str, kind: Kind, numbers: Sequence[float], scores: Sequence[float]) -> Correlation:
    """Kendall's τ_b or Spearman's ρ of `numbers` with `scores`."""
    n = len(numbers)
    if n < 2 or len(set(numbers)) < 2 or len(set(scores)) < 2:
        return Correlation(metric, kind, None, None, None, None, n)
    test = kendalltau(numbers, scores) if kind == "kendall" else spearmanr(numbers, scores)
    value = float(test.statistic)
    ties = _ties(numbers), _ties(scores)
    low, high = interval(kind, n, round(value, 12), ties) if n >= MIN_MODELS else (None, None)
    return Correlation(metric, kind, value, low, high, _p(kind, numbers, scores, float(test.pvalue)), n)


def interval(kind: Kind, n: int, value: float, ties: Ties | None = None) -> tuple[float, float]:
    """95 % interval of the family's τ or ρ; `ties` are those of the two sides, none without it."""
    plain = tuple(range(n))
    return _inverted(kind, value, ties or (plain, plain)) if n <= MOST_SIMULATED else _classical(kind, n, value)


def _ties(values: Sequence[float]) -> tuple[int, ...]:
    """The sorted values as whole numbers, equal ones equal: (0, 1, 1, 2) of (5, 7, 7, 9)."""
    return tuple(int(rank) - 1 for rank in sorted(rankdata(values, method="dense")))


def _p(kind: Kind, numbers: Sequence[float], scores: Sequence[float], classical: float) -> float:
    """Two-sided p: how many permutations of the scores, ties and all, are as strongly associated with the numbers."""
    n = len(numbers)
    tied = len(set(numbers)) < n or len(set(scores)) < n
    if n > MOST_SIMULATED or (kind == "kendall" and not tied):
        return classical  # scipy's p of τ is exact without ties; that of ρ is 0 for perfect order, however few models
    side = _scored(kind, np.asarray([rankdata(numbers)]))[0]
    ranks = rankdata(scores)
    observed = abs(float((side * _scored(kind, ranks[None, :])[0]).sum()))
    exact = n <= MOST_PERMUTED
    total = hit = 0
    for block in _permuted(ranks, exact=exact):
        statistics = np.abs((_scored(kind, block) * side).reshape(len(block), -1).sum(axis=1))
        hit += int(np.count_nonzero(statistics >= observed - 1e-9))
        total += len(block)
    return hit / total if exact else (1 + hit) / (1 + total)


def _permuted(values: NDArray[np.float64], *, exact: bool) -> Iterator[NDArray[np.float64]]:
    """Permutations of `values`, some rows at a time: all of them, or `_DRAWS` at random."""
    if exact:
        every = itertools.permutations(values)
        while block := list(itertools.islice(every, 5040)):
            yield np.array(block)
        return
    rng = np.random.default_rng([len(values), 20210716])
    yield rng.permuted(np.tile(values, (_PERMUTATIONS, 1)), axis=1)


def _scored(kind: Kind, rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """What is multiplied for the statistic: signs of all pairs for τ, centred ranks for ρ."""
    if kind == "spearman":
        centred: NDArray[np.float64] = rows - rows.mean(axis=1, keepdims=True)
        return centred
    first, second = np.triu_indices(rows.shape[1], 1)
    signs: NDArray[np.float64] = np.sign(rows[:, second] - rows[:, first])
    return signs


def _classical(kind: Kind, n: int, value: float) -> tuple[float, float]:
    """Fisher's z with the standard errors of Bonett & Wright 2000 (ρ) and Fieller et al. 1957 (τ)."""
    error = np.sqrt(0.437 / (n - 4)) if kind == "kendall" else np.sqrt((1 + value**2 / 2) / (n - 3))
    middle = np.arctanh(np.clip(value, -1 + 1e-12, 1 - 1e-12))
    return float(np.tanh(middle - 1.96 * error)), float(np.tanh(middle + 1.96 * error))


@lru_cache(maxsize=256)
def _inverted(kind: Kind, value: float, ties: Ties) -> tuple[float, float]:
    def surprise_above(rho: float) -> bool:
        return bool(np.mean(_statistics(kind, ties, rho) >= value - 1e-9) <= 0.025)

    def surprise_below(rho: float) -> bool:
        return bool(np.mean(_statistics(kind, ties, rho) <= value + 1e-9) <= 0.025)

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
def _statistics(kind: Kind, ties: Ties, rho: float) -> NDArray[np.float64]:
    """The statistic of `_DRAWS` families of n models with association rho, whose values are tied as those seen."""
    x, noise = _normals(len(ties[0]))
    sides = []
    for drawn, tied in zip((x, rho * x + np.sqrt(1 - rho**2) * noise), ties, strict=True):
        places = drawn.argsort(axis=1).argsort(axis=1)
        held = np.asarray(tied, dtype=np.float64) if kind == "kendall" else rankdata(tied)
        scored = _scored(kind, held[places])
        sides.append(scored / np.sqrt((scored[0] ** 2).sum()))
    return np.asarray((sides[0] * sides[1]).sum(axis=1))


@lru_cache(maxsize=16)
def _normals(n: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    rng = np.random.default_rng([n, 20210715])
    return rng.standard_normal((_DRAWS, n)), rng.standard_normal((_DRAWS, n))
