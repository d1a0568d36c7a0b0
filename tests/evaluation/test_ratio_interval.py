"""The interval of a ratio of two means."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import ttest_1samp

from tailwise.models.evaluation.intervals import ratio_interval


@pytest.fixture
def pairs():
    rng = np.random.default_rng(1)
    below = rng.normal(1.0, 0.5, 30)
    return 0.6 * below + rng.normal(0, 0.3, 30), below


def test_its_ends_are_where_a_t_test_turns(pairs):
    above, below = pairs
    for end in ratio_interval(above, below):
        assert ttest_1samp(above - end * below, 0.0).pvalue == pytest.approx(0.05, rel=1e-9)


def test_it_holds_the_ratio_95_times_in_100():
    rng, held = np.random.default_rng(2), 0
    for _ in range(600):
        below = rng.gamma(4.0, 0.1, 24)
        low, high = ratio_interval(0.8 * below + rng.normal(0, 0.1, 24), below)
        held += low <= 0.8 <= high
    assert 0.92 <= held / 600 <= 0.98


def test_a_part_of_itself_is_that_part(pairs):
    assert ratio_interval(0.25 * pairs[1], pairs[1]) == pytest.approx((0.25, 0.25))


def test_what_is_below_is_not_told_from_nothing_so_no_ratio_is_left_out():
    below = np.tile([1.0, -1.0], 12)
    assert ratio_interval(below + 1, below) is None


def test_too_few_and_what_is_not_finite_have_none(pairs):
    above, below = pairs
    assert ratio_interval(above[:5], below[:5]) is None
    assert ratio_interval(np.append(above[1:], np.nan), below) is None
