"""Rank correlations of few models: p by permuting what is there, against scipy's own permutation test."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from tailwise.judging.compare.correlation import correlation, interval

STATISTICS = {
    "kendall": lambda x, y: stats.kendalltau(x, y).statistic,
    "spearman": lambda x, y: stats.spearmanr(x, y).statistic,
}


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
@pytest.mark.parametrize(
    ("numbers", "scores"),
    [([1, 2, 3, 4, 5], [1, 1, 1, 1, 0]), ([1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1]), ([1, 1, 2, 3, 4], [5, 4, 3, 2, 2]),
     ([3, 1, 2, 5, 4, 6], [1, 2, 2, 4, 4, 4])],
)  # fmt: skip
def test_p_with_ties_is_that_of_every_permutation(kind, numbers, scores):
    found = correlation("alpha", kind, numbers, scores)
    oracle = stats.permutation_test(
        (scores,), lambda y: STATISTICS[kind](numbers, y), permutation_type="pairings", n_resamples=np.inf
    )
    null = np.abs(oracle.null_distribution)
    assert found.value == pytest.approx(oracle.statistic)
    assert found.p == pytest.approx(np.mean(null >= abs(oracle.statistic) - 1e-9))


def test_by_hand():
    assert correlation("alpha", "kendall", [1, 2, 3, 4, 5], [1, 1, 1, 1, 0]).p == pytest.approx(0.4)
    assert correlation("alpha", "kendall", [1, 2, 3, 4, 5, 6], [0, 0, 0, 1, 1, 1]).p == pytest.approx(0.10)


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_p_of_more_models_comes_near_the_exact_one(kind):
    rng = np.random.default_rng(2)
    numbers, scores = rng.standard_normal(12), rng.integers(0, 4, 12)
    found = correlation("alpha", kind, list(numbers), list(scores))
    draws = [abs(STATISTICS[kind](numbers, rng.permutation(scores))) for _ in range(3000)]
    assert found.p == pytest.approx(np.mean(np.array(draws) >= abs(found.value) - 1e-9), abs=0.03)


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_ties_widen_the_interval(kind):
    plain = interval(kind, 8, 0.6)
    tied = interval(kind, 8, 0.6, ((0, 1, 2, 3, 4, 5, 6, 7), (0, 0, 0, 0, 1, 1, 1, 1)))
    assert tied[1] - tied[0] > plain[1] - plain[0]
    assert -1 <= tied[0] < 0.6 < tied[1] <= 1
