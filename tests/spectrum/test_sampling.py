"""Permuted and windowed spectra: seeded, of the entries of W and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tailwise.spectrum.sampling import permuted_spectrum, window_spectrum
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import DenseMatrix, RowBlocks

RNG = np.random.default_rng(6)


class Blocked:
    """A matrix that is only ever seen three rows at a time."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor, (self.rows, self.cols) = tensor, tensor.shape

    def row_blocks(self, max_bytes: int):
        yield from self.tensor.split(3)


def permuted(matrix: RowBlocks, seed: int = 0, replica: int = 0):
    return permuted_spectrum(matrix, seed=seed, replica=replica)


def windows(matrix: RowBlocks, seed: int = 0, window: int = 16, count: int = 5):
    return window_spectrum(matrix, seed=seed, window=window, count=count, precision="float64")


@pytest.mark.parametrize("shape", [(60, 40), (40, 60)])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn])
def test_a_permutation_keeps_every_entry_and_hence_the_norm(shape, kind):
    weights = torch.from_numpy(RNG.standard_normal(shape)).to(kind)
    found = permuted(DenseMatrix(weights))
    assert (found.rows, found.cols) == shape
    assert found.eigenvalues.sum() == pytest.approx(float((weights.double() ** 2).sum()), rel=1e-5)


def test_permutations_are_seeded_and_each_replica_is_another():
    matrix = DenseMatrix(torch.from_numpy(RNG.standard_normal((50, 40))))
    first = permuted(matrix).eigenvalues
    assert np.array_equal(first, permuted(matrix).eigenvalues)
    assert not np.array_equal(first, permuted(matrix, replica=1).eigenvalues)
    assert not np.array_equal(first, permuted(matrix, seed=1).eigenvalues)


def test_a_permutation_destroys_correlations_and_keeps_single_large_weights():
    rank_one = torch.from_numpy(np.outer(RNG.standard_normal(80), RNG.standard_normal(80)))
    assert solve(rank_one).eigenvalues[-2] < 1e-9
    assert permuted(DenseMatrix(rank_one)).eigenvalues[-2] > 1
    single = torch.zeros(80, 80)
    single[3, 4] = 5.0
    assert permuted(DenseMatrix(single)).eigenvalues[-1] == pytest.approx(25.0)


def test_a_few_huge_entries_do_not_drown_the_permuted_bulk_in_rounding():
    weights = torch.from_numpy(1e-6 * RNG.standard_normal((60, 60)))
    weights[0, 0] = 1e6
    found = permuted(DenseMatrix(weights)).eigenvalues
    assert found[-1] == pytest.approx(1e12)
    assert found[:-1].sum() == pytest.approx(1e-12 * 60 * 60, rel=0.2)


def test_permuting_leaves_the_matrix_as_it_was():
    weights = torch.from_numpy(RNG.standard_normal((30, 20)))
    before = weights.clone()
    permuted(DenseMatrix(weights))
    windows(DenseMatrix(weights))
    assert torch.equal(weights, before)


@pytest.mark.parametrize("sample", [permuted, windows])
def test_how_the_rows_arrive_does_not_matter(sample):
    weights = torch.from_numpy(RNG.standard_normal((50, 40)))
    assert np.array_equal(sample(Blocked(weights)).eigenvalues, sample(DenseMatrix(weights)).eigenvalues)
    assert np.array_equal(solve(Blocked(weights)).eigenvalues.shape, (40,))


@pytest.mark.parametrize("shape", [(300, 40), (40, 300), (700, 30)])
def test_a_matrix_that_arrives_in_small_blocks_has_the_same_spectrum(shape):
    weights = torch.from_numpy(RNG.standard_normal(shape))
    one, other = solve(Blocked(weights)), solve(weights)
    assert np.max(np.abs(one.eigenvalues - other.eigenvalues)) <= one.error_bound + other.error_bound
    collapsed = torch.from_numpy(np.outer(np.ones(shape[0]), np.ones(shape[1]))) + 1e-9 * weights
    one, other = solve(Blocked(collapsed)), solve(collapsed)
    assert one.solver == other.solver == "svd-float64"
    assert np.max(np.abs(one.eigenvalues - other.eigenvalues)) <= one.error_bound + other.error_bound


def test_windows_are_square_and_pooled_and_never_larger_than_the_matrix():
    matrix = DenseMatrix(torch.from_numpy(RNG.standard_normal((50, 40))))
    found = windows(matrix, window=16, count=5)
    assert (found.rows, found.cols, found.slices, len(found.eigenvalues)) == (16, 16, 5, 80)
    whole = windows(matrix, window=999, count=3)
    assert (whole.rows, whole.cols, whole.slices) == (40, 40, 3)


def test_a_window_of_the_whole_of_a_square_matrix_is_the_matrix():
    weights = torch.from_numpy(RNG.standard_normal((40, 40)))
    found = windows(DenseMatrix(weights), window=40, count=3).eigenvalues
    assert found == pytest.approx(np.repeat(solve(weights).eigenvalues, 3))


def test_windows_are_seeded():
    matrix = DenseMatrix(torch.from_numpy(RNG.standard_normal((50, 40))))
    assert np.array_equal(windows(matrix).eigenvalues, windows(matrix).eigenvalues)
    assert not np.array_equal(windows(matrix).eigenvalues, windows(matrix, seed=1).eigenvalues)


def test_windows_reach_every_part_of_the_matrix():
    # One corner is large; some of many windows must see it, and most must not.
    weights = torch.zeros(40, 40, dtype=torch.float64)
    weights[-1, -1] = 1.0
    seen = np.count_nonzero(windows(DenseMatrix(weights), window=20, count=400).eigenvalues)
    assert 0 < seen < 40
