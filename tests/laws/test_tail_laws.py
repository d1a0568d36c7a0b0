"""Tail fits give back what was put in, and the fast scan is the dense one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwise.core.recipe import Recipe
from tailwise.spectrum.ks_scan import ks_at, lower_bounds, scan
from tailwise.spectrum.marchenko_pastur import gaussian_spectrum
from tailwise.spectrum.metrics.facts import Facts, Spectra
from tailwise.spectrum.other_laws import fit_truncated
from tailwise.spectrum.power_law import ESTIMATORS, TailOptions, fit_tail
from tailwise.spectrum.spectrum import Spectrum

LAW = settings(deadline=None, derandomize=True, max_examples=150)


def pareto(alpha: float, count: int, rng: np.random.Generator, smallest: float = 1.0) -> np.ndarray:
    """Ascending draws from p(x) ∝ x^−α, x ≥ smallest."""
    return np.sort(smallest * (1 - rng.random(count)) ** (-1 / (alpha - 1)))


def dense_scan(values: np.ndarray) -> tuple[float, list[int]] | None:
    """The smallest D over every λ_min in O(N²), and every index that reaches it."""
    logs, n = np.log(values), len(values)
    distances = {}
    for i in range(n - 1):
        spread = float(np.sum(logs[i:] - logs[i]))
        if spread <= 1e-12 * max(1.0, abs(float(np.sum(logs[i:])))):
            continue
        alpha = 1 + (n - i) / spread
        fitted = 1 - np.exp((1 - alpha) * (logs[i:] - logs[i]))
        distances[i] = float(np.max(np.abs(fitted - np.arange(n - i) / (n - i))))
    if not distances:
        return None
    best = min(distances.values())
    return best, [i for i, distance in distances.items() if distance <= best + 1e-11]


@st.composite
def spectra(draw, largest: int) -> np.ndarray:
    """Ascending positive values of many shapes: heavy and light, with and without ties and gaps."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    count = draw(st.integers(2, largest))
    kind = draw(st.sampled_from(["pareto", "lognormal", "uniform", "ties", "steps", "spike"]))
    values = {
        "pareto": lambda: rng.pareto(draw(st.floats(0.3, 6)), count) + 1,
        "lognormal": lambda: rng.lognormal(0, draw(st.floats(0.1, 4)), count),
        "uniform": lambda: rng.random(count) + 1e-3,
        "ties": lambda: rng.integers(1, 5, count).astype(float),
        "steps": lambda: 2.0 ** rng.integers(-8, 8, count),
        "spike": lambda: np.append(rng.random(count - 1) + 1, 1e6),
    }[kind]()
    return np.sort(values) * 10.0 ** draw(st.integers(-4, 4))


def assert_is_the_dense_scan(values: np.ndarray) -> None:
    found, expected = scan(np.log(values)), dense_scan(values)
    if expected is None:
        assert found is None
        return
    index, alpha, distance = found
    assert distance == pytest.approx(expected[0], abs=1e-11)
    assert index in expected[1]
    assert alpha == pytest.approx(1 + (len(values) - index) / np.sum(np.log(values[index:] / values[index])), rel=1e-9)


@LAW
@given(spectra(largest=60))
def test_the_scan_of_small_spectra_is_the_dense_scan(values):
    assert_is_the_dense_scan(values)


@settings(LAW, max_examples=30)
@given(spectra(largest=900))
def test_the_scan_of_larger_spectra_is_the_dense_scan(values):
    assert_is_the_dense_scan(values)


@LAW
@given(spectra(largest=200))
def test_the_bound_that_prunes_the_scan_is_never_above_the_distance(values):
    logs = np.log(values)
    n = len(logs)
    with np.errstate(divide="ignore"):
        alphas = np.array([1 + (n - i) / s if (s := np.sum(logs[i:] - logs[i])) > 1e-9 else 2.0 for i in range(n - 1)])
    bounds = lower_bounds(logs, alphas, np.arange(n - 1), np.linspace(0, 0.99, 20))
    exact = [ks_at(logs, i, alphas[i])[0] for i in range(n - 1)]
    assert np.all(bounds <= np.array(exact) + 1e-12)


@LAW
@given(spectra(largest=120))
def test_the_two_sided_distance_is_that_of_kolmogorov_and_smirnov(values):
    fit = fit_tail(values, "ks")
    if not fit.ok:
        return
    tail = values[values >= fit.lambda_min][-fit.k :]
    fitted = 1 - (tail / fit.lambda_min) ** (1 - fit.alpha)
    below, upto = np.arange(fit.k) / fit.k, np.arange(1, fit.k + 1) / fit.k
    expected = max(np.max(np.abs(fitted - below)), np.max(np.abs(fitted - upto)))
    assert fit.ks_distance_two_sided == pytest.approx(expected, abs=1e-9)
    assert fit.ks_distance <= fit.ks_distance_two_sided + 1e-12


@settings(LAW, max_examples=40)
@given(st.floats(1.4, 7.0), st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 1e4]))
def test_a_pareto_sample_gives_back_its_exponent(alpha, seed, smallest):
    values = pareto(alpha, 2000, np.random.default_rng(seed), smallest)
    for estimator in ("top", "top_outside", "mid", "ks"):
        fit = fit_tail(values, estimator)
        # `ks` picks its tail by the data, which adds to the scatter of a fixed tail.
        allowed = 4 if estimator != "ks" else 6
        assert abs(fit.alpha - alpha) < allowed * fit.sigma, estimator
        assert fit.sigma == pytest.approx((fit.alpha - 1) / np.sqrt(fit.k))


def test_all_of_a_pareto_sample_gives_back_its_exponent_within_four_standard_errors():
    rng = np.random.default_rng(0)
    deviations = []
    for alpha in np.linspace(1.5, 6, 60):
        fit = fit_tail(pareto(alpha, 1000, rng), "top", TailOptions(k_frac=1.0))
        deviations.append((fit.alpha - alpha) / fit.sigma)
    assert np.max(np.abs(deviations)) < 4
    assert 0.7 < np.std(deviations) < 1.3  # the standard error is neither too large nor too small


@LAW
@given(spectra(largest=80), st.sampled_from([0.05, 0.1, 0.5, 1.0]))
def test_top_fits_take_exactly_their_k(values, k_frac):
    m, options = len(values), TailOptions(k_frac=k_frac)
    inside, outside = fit_tail(values, "top", options), fit_tail(values, "top_outside", options)
    if inside.ok:
        assert inside.k == max(int(k_frac * m), 2)
        assert inside.lambda_min == values[-inside.k]
        assert inside.alpha == pytest.approx(1 + inside.k / np.sum(np.log(values[-inside.k :] / inside.lambda_min)))
    if outside.ok:
        assert outside.k == min(max(10, int(k_frac * m)), m - 1)
        assert outside.lambda_min == values[-outside.k - 1]


@LAW
@given(spectra(largest=120))
def test_every_fit_is_finite_or_degenerate(values):
    for estimator in ESTIMATORS:
        fit = fit_tail(values, estimator)
        assert fit.estimator == estimator
        if fit.ok:
            assert fit.alpha > 1
            assert np.isfinite([fit.alpha, fit.sigma, fit.ks_distance, fit.lambda_min, fit.lambda_max]).all()
            assert 0 <= fit.ks_distance <= 1
            assert 2 <= fit.k <= len(values)
            assert (fit.status == "FEW_EIGENVALUES") == (len(values) < 50)
        else:
            assert fit.alpha == 10.0
            assert fit.remedy


def test_fingers_are_dropped_only_where_alpha_falls_by_one_and_then_as_few_as_that_takes():
    rng = np.random.default_rng(0)
    fits = []
    for _ in range(60):
        values = gaussian_spectrum(120, 60, rng).eigenvalues
        plain, clipped = fit_tail(values, "ks"), fit_tail(values, "ks_clip")
        fits.append(clipped.dropped)
        fewer = [fit_tail(values[:-drop], "ks").alpha for drop in range(2, 10)]
        if clipped.dropped:
            assert clipped.alpha == fewer[clipped.dropped - 2] < plain.alpha - 1
            assert min([plain.alpha, *fewer[: clipped.dropped - 2]]) >= plain.alpha - 1
            assert clipped.lambda_max == values[-clipped.dropped - 1]
        else:
            assert clipped.alpha == plain.alpha
    assert 5 < np.count_nonzero(fits) < 55


@pytest.mark.parametrize("estimator", ["top", "ks"])
def test_the_bootstrap_interval_brackets_alpha(estimator):
    for seed in range(6):
        values = pareto(2.8, 300, np.random.default_rng(seed))
        recipe = Recipe(estimator=estimator, bootstrap=120, k_frac=0.5)
        facts = Facts(Spectra(Spectrum(values, 300, 300)), recipe)
        low, high = facts.interval
        assert low < facts.tail.alpha < high
        assert 1 * facts.tail.sigma < high - low < 12 * facts.tail.sigma


def test_the_bootstrap_interval_is_seeded():
    spectra_of_one = Spectra(Spectrum(pareto(2.8, 100, np.random.default_rng(0)), 100, 100))
    intervals = [Facts(spectra_of_one, Recipe(bootstrap=30, seed=seed)).interval for seed in (0, 0, 1)]
    assert intervals[0] == intervals[1] != intervals[2]


@settings(LAW, max_examples=8)
@given(st.floats(1.3, 2.5), st.floats(0.02, 0.3), st.integers(0, 1000))
def test_a_truncated_sample_gives_back_its_exponent_and_rate(alpha, rate, seed):
    rng = np.random.default_rng(seed)
    draws = pareto(alpha, 6_000, rng)
    tail = draws[rng.random(len(draws)) < np.exp(-rate * (draws - 1))]
    fit = fit_truncated(tail, 1 + len(tail) / np.sum(np.log(tail / tail[0])))
    assert fit.alpha == pytest.approx(alpha, abs=0.25)
    assert fit.rate == pytest.approx(rate, rel=0.5)
    assert fit.gain >= 0
    assert fit.ks_distance < 0.03


def test_a_truncated_fit_without_spread_or_values_is_none():
    assert fit_truncated(np.ones(5), 2.0) is None
    assert fit_truncated(np.array([1.0, 2.0]), 2.0) is None
