"""Do the intervals hold, and does the paired test find what is there and no more?"""

from __future__ import annotations

import numpy as np
import pytest

from tailwise.models.evaluation import intervals
from tailwise.models.evaluation.intervals import independent, mean_interval, sign_flip_p, wilson


@pytest.fixture
def fewer(monkeypatch):
    monkeypatch.setattr(intervals, "RESAMPLES", 999)


@pytest.mark.parametrize("n", [12, 40])
def test_the_interval_of_a_mean_holds_it_95_times_in_100(fewer, n):
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        values = rng.gamma(4.0, 0.8, n)  # skewed, as losses of windows are
        low, high = mean_interval(values, seed=trial)
        held += low <= 3.2 <= high
    assert 0.92 <= held / 400 <= 0.98


def chained(rng, n, correlation=0.8):
    """Values of which each is like the one before: mean 0."""
    steps, values = rng.normal(0, 1, n + 50), np.zeros(n + 50)
    for index in range(1, n + 50):
        values[index] = correlation * values[index - 1] + steps[index]
    return values[50:]


def test_the_interval_holds_the_mean_of_correlated_windows_too(fewer):
    rng = np.random.default_rng(5)
    trials = [mean_interval(chained(rng, 200), seed=seed) for seed in range(300)]
    assert sum(low <= 0 <= high for low, high in trials) / 300 >= 0.88


def test_correlated_differences_without_a_change_are_rarely_called_one(fewer):
    rng = np.random.default_rng(6)
    found = sum(sign_flip_p(chained(rng, 200), seed=seed) < 0.05 for seed in range(200))
    assert found / 200 <= 0.12


def test_values_unlike_their_neighbours_are_their_own_runs():
    values = np.tile([0.0, 1.0], 25)
    assert independent(values) is values


def test_correlated_values_are_averaged_but_at_least_eight_runs_are_left():
    runs = independent(np.linspace(0, 1, 100))
    assert 8 <= len(runs) < 16
    assert np.isclose(runs.mean(), 0.5, atol=0.02)


def test_of_very_many_values_neighbours_are_averaged_and_the_interval_stays_what_it_is():
    values = np.random.default_rng(0).gamma(4.0, 0.8, 30_000)
    assert len(independent(values)) <= intervals.MOST_RUNS
    low, high = mean_interval(values)
    half = 1.96 * values.std() / np.sqrt(len(values))
    assert low == pytest.approx(values.mean() - half, abs=half / 8)
    assert high == pytest.approx(values.mean() + half, abs=half / 8)
    assert sign_flip_p(values - values.mean()) > 0.5


def test_the_interval_is_that_of_its_seed():
    values = np.random.default_rng(1).normal(3, 1, 30)
    assert mean_interval(values, seed=4) == mean_interval(values, seed=4) != mean_interval(values, seed=5)


def test_equal_values_have_an_interval_of_no_width():
    assert mean_interval(np.full(10, 2.5)) == (2.5, 2.5)


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0, 4.0, 5.0], [1.0] * 9 + [np.nan]])
def test_few_or_unfinite_values_have_no_interval(values):
    assert mean_interval(np.array(values)) is None


def test_the_sign_flip_test_is_exact_for_few_pairs():
    assert sign_flip_p(np.array([1.0, 2.0, 3.0, 4.0, 5.0, 6.0])) == pytest.approx(2 / 64)


def test_the_sign_flip_test_finds_a_small_shift_under_large_common_noise():
    rng = np.random.default_rng(2)
    before = rng.normal(3, 1, 100)
    after = before + 0.01 + rng.normal(0, 0.02, 100)
    assert sign_flip_p(after - before) < 0.001


def test_the_sign_flip_test_calls_noise_5_times_in_100(fewer):
    rng = np.random.default_rng(3)
    found = sum(sign_flip_p(rng.normal(0, 1, 20), seed=trial) < 0.05 for trial in range(300))
    assert 0.02 <= found / 300 <= 0.085


def test_no_change_at_all_is_no_difference():
    assert sign_flip_p(np.zeros(8)) == 1.0


def test_nothing_to_test_has_no_p():
    assert sign_flip_p(np.array([])) is None


def test_wilson_is_that_of_the_textbook():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20.
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
