"""What must happen to a spectrum and its numbers when the matrix is scaled, permuted, turned, rotated or padded."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import Spectra, measure
from tailwise.spectrum.power_law import ESTIMATORS, EVALS_THRESHOLD, fit_tail
from tailwise.spectrum.solve import solve
from tailwise.spectrum.spectrum import Spectrum, pool

LAW = settings(deadline=None, derandomize=True, max_examples=40)
RECIPE = Recipe(baseline_replicas=2)
UNCHANGED = [
    "stable_rank", "effective_rank", "matrix_entropy", "singular_entropy", "singular_entropy_normalized",
    "matrix_rank", "rank_loss", "alpha_hill", "alpha_hill_sigma", "mp_softrank", "num_spikes", "mp_distance",
    "detX_num",
]  # fmt: skip


@st.composite
def matrices(draw) -> np.ndarray:
    """From Gaussian to heavy-tailed, tall or wide."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    shape = draw(st.integers(4, 60)), draw(st.integers(4, 60))
    entries = rng.standard_t(draw(st.sampled_from([1.5, 3.0, 30.0])), shape)
    return entries * rng.lognormal(0, draw(st.sampled_from([0.0, 1.0])), (shape[0], 1))


def spectrum_of(weights: np.ndarray) -> Spectrum:
    return solve(torch.from_numpy(np.ascontiguousarray(weights)))


def assert_same_eigenvalues(one: Spectrum, other: Spectrum) -> None:
    bound = 2 * (one.error_bound + other.error_bound)
    assert np.max(np.abs(one.eigenvalues - other.eigenvalues)) <= bound


@LAW
@given(matrices(), st.sampled_from([1e-30, 1e-3, 0.5, 7.0, 1e40]))
def test_scaling_the_weights_scales_the_eigenvalues_by_the_square(weights, c):
    one, other = spectrum_of(weights), spectrum_of(c * weights)
    scaled = Spectrum(one.eigenvalues * c**2, one.rows, one.cols, error_bound=one.error_bound * c**2)
    assert_same_eigenvalues(scaled, other)


@LAW
@given(matrices(), st.sampled_from([1e-3, 0.37, 50.0, 1e6]))
def test_scaling_leaves_shape_numbers_unchanged_and_shifts_logarithmic_norms(weights, c):
    one, other = (measure(Spectra(spectrum_of(w)), RECIPE) for w in (weights, c * weights))
    for name in UNCHANGED:
        assert other[name] == pytest.approx(one[name], rel=1e-6, abs=1e-9), name
    for name in ("log_norm", "log_spectral_norm"):
        assert other[name] - one[name] == pytest.approx(2 * math.log10(c), abs=1e-9)
    for name, power in {"sigma_mp": 1, "lambda_plus": 2, "detX_val": 2}.items():
        assert other[name] == pytest.approx(one[name] * c**power, rel=1e-6), name


@LAW
@given(matrices(), st.sampled_from([0.37, 4.0, 1e3]))
def test_scaling_leaves_alpha_unchanged_while_no_eigenvalue_crosses_the_threshold(weights, c):
    one, other = spectrum_of(weights), spectrum_of(c * weights)
    assume(min(one.eigenvalues[0], other.eigenvalues[0]) > EVALS_THRESHOLD)
    for estimator in set(ESTIMATORS) - {"peak"}:
        mine, theirs = fit_tail(one.eigenvalues, estimator), fit_tail(other.eigenvalues, estimator)
        assert theirs.alpha == pytest.approx(mine.alpha, rel=1e-6), estimator
        assert theirs.lambda_min == pytest.approx(mine.lambda_min * c**2, rel=1e-6), estimator


@LAW
@given(matrices(), st.integers(0, 100))
def test_permuting_rows_and_columns_leaves_the_spectrum(weights, seed):
    rng = np.random.default_rng(seed)
    rows, cols = (rng.permutation(size) for size in weights.shape)
    assert_same_eigenvalues(spectrum_of(weights), spectrum_of(weights[rows][:, cols]))


@LAW
@given(matrices())
def test_transposing_leaves_the_spectrum(weights):
    assert_same_eigenvalues(spectrum_of(weights), spectrum_of(weights.T))


@LAW
@given(matrices(), st.integers(0, 100))
def test_orthogonal_rotations_leave_the_spectrum(weights, seed):
    rng = np.random.default_rng(seed)
    left, right = (np.linalg.qr(rng.standard_normal((size, size)))[0] for size in weights.shape)
    assert_same_eigenvalues(spectrum_of(weights), spectrum_of(left @ weights @ right))


@LAW
@given(matrices(), st.integers(1, 12))
def test_padding_with_zero_columns_adds_zeros_only(weights, extra):
    one = spectrum_of(weights)
    other = spectrum_of(np.hstack([weights, np.zeros((weights.shape[0], extra))]))
    added = len(other.eigenvalues) - len(one.eigenvalues)
    assert added == max(0, min(extra, weights.shape[0] - weights.shape[1]))
    padded = np.concatenate([np.zeros(added), one.eigenvalues])
    bound = 2 * (one.error_bound + other.error_bound)
    assert np.max(np.abs(other.eigenvalues - padded)) <= bound


@LAW
@given(matrices())
def test_eigenvalues_sum_to_the_squared_frobenius_norm_and_end_at_the_spectral_norm(weights):
    found = spectrum_of(weights)
    assert found.eigenvalues.sum() == pytest.approx(np.sum(weights**2), rel=1e-12)
    assert found.eigenvalues[-1] == pytest.approx(np.linalg.norm(weights, 2) ** 2, rel=1e-12)


def test_the_order_of_pooled_matrices_does_not_matter():
    parts = [spectrum_of(np.random.default_rng(seed).standard_normal((30, 20))) for seed in range(4)]
    one, other = pool(parts), pool(parts[::-1])
    assert np.array_equal(one.eigenvalues, other.eigenvalues)
    assert (one.slices, len(one.eigenvalues), one.m) == (4, 80, 20)
