"""Eigenvalues are those of a float64 SVD, whatever route computed them, and `error_bound` bounds their error."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.spectrum.metrics.norms_ranks import matrix_rank, singular_entropy
from tailwise.spectrum.power_law import ESTIMATORS, fit_tail
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import DenseMatrix
from tailwise.spectrum.spectrum import Spectrum

SHAPES = [
    (8, 8),
    (64, 64),
    (65, 64),
    (300, 200),
    (200, 300),
    (1500, 37),
    (37, 1500),
    (513, 511),
    (600, 600),
    (20, 4097),
]


def oracle(weights: np.ndarray) -> Spectrum:
    sigma = np.linalg.svd(np.asarray(weights, dtype=np.float64), compute_uv=False)[::-1]
    return Spectrum(sigma**2, *weights.shape)


def entropy_by_hand(sigma) -> float:
    shares = [s / math.fsum(sigma) for s in sigma if s > 0]
    return math.log(len(sigma)) + math.fsum(p * math.log(p) for p in shares)


def assert_as_the_svd(weights: np.ndarray) -> Spectrum:
    return assert_same_spectrum(solve(torch.from_numpy(weights)), oracle(weights))


def assert_same_spectrum(found: Spectrum, exact: Spectrum) -> Spectrum:
    top = exact.eigenvalues[-1]
    assert found.error_bound < 1e-12 * top
    # The oracle is itself off by a few ε·σ_max; hence twice.
    assert np.max(np.abs(found.eigenvalues - exact.eigenvalues)) <= 2 * found.error_bound
    assert singular_entropy(found) == pytest.approx(entropy_by_hand(exact.singular_values), abs=1e-8)
    sigma = exact.singular_values
    assert matrix_rank(found) == np.count_nonzero(sigma > sigma[-1] * exact.n * np.finfo(float).eps)
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_random_matrices_of_any_shape_have_the_svds_spectrum_and_alphas(shape):
    weights = np.random.default_rng(shape).standard_normal(shape)
    exact = oracle(weights)
    found = assert_same_spectrum(solve(torch.from_numpy(weights)), exact)
    for estimator in ESTIMATORS:
        mine, theirs = fit_tail(found.eigenvalues, estimator), fit_tail(exact.eigenvalues, estimator)
        assert mine.status == theirs.status
        assert mine.alpha == pytest.approx(theirs.alpha, rel=1e-6), estimator


def test_every_matrix_of_a_real_model_has_the_svds_spectrum_and_alpha(pycode):
    from tailwise.checkpoints.open import open_checkpoint

    with open_checkpoint(str(pycode)) as checkpoint:
        matrices = {
            name: checkpoint.read(name).double().numpy() for name, s in checkpoint.tensors.items() if len(s.shape) == 2
        }
    assert len(matrices) > 50
    for name, weights in matrices.items():
        exact = oracle(weights)
        found = assert_same_spectrum(solve(torch.from_numpy(weights)), exact)
        for estimator in ("ks", "top"):
            alpha = fit_tail(exact.eigenvalues, estimator).alpha
            assert fit_tail(found.eigenvalues, estimator).alpha == pytest.approx(alpha, abs=1e-6), name


@pytest.mark.parametrize("exponent", range(4, 15))
@pytest.mark.parametrize("shape", [(150, 150), (260, 120), (90, 400)])
def test_ill_conditioned_matrices_keep_their_entropy_and_rank(shape, exponent, matrix_with):
    assert_as_the_svd(matrix_with(np.logspace(0, -exponent, min(shape)), *shape))


def test_the_svd_is_taken_from_the_condition_on_at_which_the_gram_matrix_loses_digits(matrix_with):
    # σ_min² must clear ε·σ_max²: hopeless from a condition of 1e8 on, harmless up to 1e3.
    routes = {e: solve(torch.from_numpy(matrix_with(np.logspace(0, -e, 100), 140, 100))).solver for e in range(1, 15)}
    assert all(routes[e] == "gram-float64" for e in range(1, 4))
    assert all(routes[e] == "svd-float64" for e in range(8, 15))
    assert list(routes.values()) == sorted(routes.values())  # one change, from gram to svd


def test_the_svd_is_taken_where_small_singular_values_are_many_enough_to_move_the_entropy(matrix_with):
    # Each λ = 9e-14 stands clear of the Gram matrix's error of 9e-15, but fifty errors of σ add up to 1e-7.
    many = np.concatenate([np.full(50, 3e-7), np.linspace(1, 2, 50)])
    assert solve(torch.from_numpy(matrix_with(many, 140, 100))).solver == "svd-float64"
    one = np.concatenate([[3e-6], np.linspace(1, 2, 99)])
    assert solve(torch.from_numpy(matrix_with(one, 140, 100))).solver == "gram-float64"


@pytest.mark.parametrize("smallest", [1e-9, 1e-11])
def test_one_tiny_singular_value_is_neither_lost_nor_taken_for_a_zero_column(smallest, matrix_with):
    sigma = np.concatenate([np.linspace(1, 2, 39), [smallest]])
    for seed in range(12):
        assert_as_the_svd(matrix_with(sigma, 60, 40, seed))


@pytest.mark.parametrize("rank", [1, 2, 17, 59])
@pytest.mark.parametrize("shape", [(60, 60), (200, 60), (60, 200)])
def test_missing_ranks_are_counted_exactly(shape, rank, matrix_with):
    weights = matrix_with(np.linspace(1, 3, rank), *shape)
    assert matrix_rank(assert_as_the_svd(weights)) == rank


@pytest.mark.parametrize("shape", [(200, 60), (60, 200), (60, 60)])
@pytest.mark.parametrize("axis", [0, 1])
def test_zero_rows_and_columns_give_exact_zeros_and_leave_the_rest(shape, axis):
    weights = np.random.default_rng(1).standard_normal(shape)
    dead = np.random.default_rng(2).permutation(shape[axis])[: shape[axis] // 3]
    weights[dead if axis == 0 else (slice(None), dead)] = 0.0
    found = assert_as_the_svd(weights)
    if axis == 0 and shape[0] == shape[1]:
        return  # a square matrix is read through its columns, so zero rows are a lost rank like any other
    on_the_short_side = shape[axis] == min(shape)
    assert np.count_nonzero(found.eigenvalues == 0) == (len(dead) if on_the_short_side else 0)
    assert found.solver == "gram-float64"


def test_a_zero_matrix_has_zero_eigenvalues_and_a_bound_of_zero():
    found = solve(torch.zeros(30, 20))
    assert not found.eigenvalues.any()
    assert found.error_bound == 0.0


@pytest.mark.parametrize("condition", [1e0, 1e3, 1e6, 1e12])
def test_the_error_bound_holds_against_fifty_digits(condition, matrix_with):
    mpmath = pytest.importorskip("mpmath")
    weights = matrix_with(np.geomspace(1, 1 / condition, 12), 20, 12)
    with mpmath.workdps(50):
        exact_weights = mpmath.matrix(weights.tolist())
        values = mpmath.eigsy(exact_weights.T * exact_weights, eigvals_only=True)
        exact = np.array(sorted(float(value) for value in values))
    found = solve(torch.from_numpy(weights))
    assert np.max(np.abs(found.eigenvalues - exact)) <= found.error_bound < 1e-12 * exact[-1]


@pytest.mark.parametrize("shape", [(64, 64), (400, 150), (150, 400)])
@pytest.mark.parametrize("condition", [1e0, 1e2, 1e5])
def test_float32_mode_stays_within_its_own_bound(shape, condition, matrix_with):
    weights = matrix_with(np.geomspace(1, 1 / condition, min(shape)), *shape)
    found, exact = solve(torch.from_numpy(weights), precision="float32"), oracle(weights)
    assert found.solver == "gram-float32"
    assert np.max(np.abs(found.eigenvalues - exact.eigenvalues)) <= found.error_bound < 1e-4 * exact.eigenvalues[-1]


def test_a_low_rank_product_has_the_spectrum_of_the_dense_matrix():
    rng = np.random.default_rng(4)
    left, right = rng.standard_normal((120, 8)), rng.standard_normal((8, 90))

    class Product(DenseMatrix):
        factors = (torch.from_numpy(left), torch.from_numpy(right))

    found, exact = solve(Product(torch.from_numpy(left @ right))), oracle(left @ right)
    assert found.solver == "factors-float64"
    assert len(found.eigenvalues) == 90
    assert not found.eigenvalues[:82].any()
    assert np.max(np.abs(found.eigenvalues - exact.eigenvalues)) <= 2 * found.error_bound


def test_one_call_functions_agree_with_the_svd():
    weights = np.random.default_rng(5).standard_normal((70, 50))
    exact = oracle(weights)
    assert tw.singular_entropy(weights) == pytest.approx(entropy_by_hand(exact.singular_values), abs=1e-8)
    assert tw.stable_rank(weights) == pytest.approx(np.linalg.norm(weights) ** 2 / np.linalg.norm(weights, 2) ** 2)
    top = exact.eigenvalues[-5:]
    assert tw.alpha_hill(weights) == pytest.approx(1 + 5 / np.sum(np.log(top / top[0])), abs=1e-6)
    assert tw.esd(weights.reshape(70, 5, 10)).cols == 50
