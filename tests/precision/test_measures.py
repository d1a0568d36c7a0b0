"""What moved between two spectra."""

import math

import numpy as np
import pytest

from tailwise.audits.precision.study_work import shift_error, spectral_distance, stable_rank_change
from tailwise.spectrum.power_law import fit_tail
from tailwise.spectrum.spectrum import Spectrum


def _spectrum(values: object, error_bound: float = 0.0) -> Spectrum:
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    return Spectrum(ordered, len(ordered), len(ordered), error_bound=error_bound)


def _pareto(seed: int, count: int = 400, alpha: float = 3.0) -> np.ndarray:
    return (1 - np.random.default_rng(seed).random(count)) ** (-1 / (alpha - 1))


def test_the_distance_of_a_spectrum_to_itself_is_zero() -> None:
    spectrum = _spectrum(_pareto(0))
    assert spectral_distance(spectrum, spectrum) == 0


def test_scaling_every_eigenvalue_moves_the_spectrum_by_the_logarithm() -> None:
    values = _pareto(1)
    assert spectral_distance(_spectrum(values), _spectrum(3 * values)) == pytest.approx(math.log(3))


def test_the_distance_agrees_with_scipy() -> None:
    from scipy.stats import wasserstein_distance

    old, new = _pareto(2), _pareto(3)
    expected = wasserstein_distance(np.log(old), np.log(new))
    assert spectral_distance(_spectrum(old), _spectrum(new)) == pytest.approx(expected)


def test_eigenvalues_that_neither_spectrum_resolves_do_not_count() -> None:
    values = _pareto(4, 100)
    old = _spectrum(np.concatenate([[1e-30, 1e-25], values]), error_bound=1e-6)
    new = _spectrum(np.concatenate([[1e-9, 1e-8], values]), error_bound=1e-6)
    assert spectral_distance(old, new) == 0


def test_all_zero_spectra_are_alike_and_have_no_stable_rank() -> None:
    zero = _spectrum(np.zeros(8))
    assert spectral_distance(zero, zero) == 0
    assert stable_rank_change(zero, _spectrum(np.ones(8))) is None


def test_the_change_of_stable_rank_is_relative() -> None:
    assert stable_rank_change(_spectrum([1, 1, 1, 1]), _spectrum([0.5, 0.5, 0.5, 1])) == pytest.approx(2.5 / 4 - 1)


def _fit(values: np.ndarray) -> tuple[Spectrum, object]:
    spectrum = _spectrum(values)
    return spectrum, fit_tail(spectrum.eigenvalues, "top")


def test_scaling_all_eigenvalues_shifts_alpha_by_nothing_with_no_error() -> None:
    values = _pareto(5)
    assert shift_error(_fit(values), _fit(7 * values)) == pytest.approx(0, abs=1e-12)


def test_the_paired_error_is_the_scatter_of_the_shift_over_samples() -> None:
    rng = np.random.default_rng(6)
    shifts, errors, unpaired = [], [], []
    for seed in range(300):
        values = np.sort(_pareto(seed + 1000, 600))
        moved = values * np.exp(0.05 * rng.standard_normal(600))
        before, after = _fit(values), _fit(np.sort(moved))
        shifts.append(after[1].alpha - before[1].alpha)
        errors.append(shift_error(before, after))
        unpaired.append(math.hypot(before[1].sigma, after[1].sigma))
    assert np.median(errors) == pytest.approx(np.std(shifts), rel=0.25)
    assert np.median(unpaired) > 2 * np.std(shifts)


def test_resampled_ranks_are_the_largest_of_draws_with_replacement() -> None:
    from tailwise.audits.precision.study_work import _largest_of_resamples

    rng = np.random.default_rng(8)
    drawn = np.sort(rng.integers(0, 50, (4000, 50)), axis=1)[:, -5:]
    found = _largest_of_resamples(50, 5)
    assert np.all(np.diff(found, axis=1) >= 0)
    assert found.mean(axis=0) == pytest.approx(drawn.mean(axis=0), abs=0.6)


def test_a_degenerate_tail_has_no_error_of_its_shift() -> None:
    assert shift_error(_fit(np.ones(50)), _fit(_pareto(7, 50))) is None


@pytest.mark.parametrize("count", [50, 100])
def test_the_error_of_a_short_tail_is_not_that_of_its_wildest_resample(count: int) -> None:
    rng = np.random.default_rng(9)
    shifts, errors = [], []
    for seed in range(300):
        values = np.sort(_pareto(seed + 5000, count))
        before, after = _fit(values), _fit(np.sort(values * np.exp(0.05 * rng.standard_normal(count))))
        shifts.append(after[1].alpha - before[1].alpha)
        errors.append(shift_error(before, after))
    scatter = np.subtract(*np.quantile(shifts, [0.84134, 0.15866])) / 2
    assert 0.7 * scatter < np.median(errors) < 2 * scatter
