"""λ_min by the distance from a power law that ends at λ_max: by hand, and against powerlaw."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from tailwise.spectrum.power_law import fit_tail


def pareto(n, alpha, seed, top=None):
    """n values of a power law from 1 on, cut off at `top`."""
    shares = np.random.default_rng(seed).random(n)
    most = 1.0 if top is None else 1.0 - top ** (1.0 - alpha)
    return np.sort((1.0 - shares * most) ** (-1.0 / (alpha - 1.0)))


def by_hand(tail):
    """(α, D) of a tail: the likelihood without an end maximised by scipy, D by that of a power law with one."""
    low, high = tail[0], tail[-1]

    def minus_log_likelihood(alpha):
        return -len(tail) * np.log((alpha - 1) * low ** (alpha - 1)) + alpha * np.log(tail).sum()

    alpha = minimize_scalar(minus_log_likelihood, bounds=(1 + 1e-6, 90), method="bounded", options={"xatol": 1e-12}).x
    fitted = (low ** (1 - alpha) - tail ** (1 - alpha)) / (low ** (1 - alpha) - high ** (1 - alpha))
    return alpha, np.abs(fitted - np.arange(len(tail)) / len(tail)).max()


@pytest.mark.parametrize(("n", "alpha", "top"), [(60, 2.5, None), (200, 3.5, 20.0), (150, 1.7, 50.0), (80, 5.0, 3.0)])
def test_the_tail_is_the_one_with_the_smallest_distance_by_hand(n, alpha, top):
    values = np.sort(np.r_[np.random.default_rng(2).random(n // 2), pareto(n, alpha, 3, top)])
    values = values[values > 1e-5]
    fit = fit_tail(values, "ks_truncated")
    tails = [by_hand(values[index:]) for index in range(len(values) - 1)]
    best = min((distance, index) for index, (_, distance) in enumerate(tails))
    assert fit.ks_distance == pytest.approx(best[0], abs=1e-6)
    assert fit.alpha == pytest.approx(tails[len(values) - fit.k][0], rel=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_it_is_what_powerlaw_fits_with_xmax_at_the_largest_value(seed):
    powerlaw = pytest.importorskip("powerlaw")
    values = np.sort(np.r_[np.random.default_rng(seed).random(60), pareto(140, 2.6 + seed / 2, seed)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values, xmax=values.max(), verbose=False)
    ours = fit_tail(values, "ks_truncated")
    assert ours.lambda_min == pytest.approx(theirs.xmin)
    assert ours.alpha == pytest.approx(theirs.alpha, rel=1e-6)
    assert ours.ks_distance == pytest.approx(theirs.D, abs=1e-9)


def test_scaling_changes_nothing_and_equal_values_have_no_exponent():
    values = pareto(200, 3.0, 4)
    one, other = fit_tail(values, "ks_truncated"), fit_tail(values * 37.0, "ks_truncated")
    assert one.alpha == pytest.approx(other.alpha, rel=1e-9)
    for equal in (np.ones(100), np.zeros(100)):
        assert not fit_tail(equal, "ks_truncated").ok


def test_the_end_changes_which_tail_is_the_best():
    values = np.sort(np.r_[np.random.default_rng(2).random(60), pareto(140, 3.6, 2)])
    plain, ended = fit_tail(values, "ks"), fit_tail(values, "ks_truncated")
    assert ended.lambda_min != plain.lambda_min
    tail = values[values >= ended.lambda_min]
    assert ended.alpha == pytest.approx(1 + len(tail) / np.log(tail / tail[0]).sum())
