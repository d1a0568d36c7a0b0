"""Stochastic Lanczos quadrature: exact where it must be, and intervals that hold what they say."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UsageError
from tailwise.spectrum.lanczos import LanczosOptions, estimate
from tailwise.spectrum.metrics.norms_ranks import effective_rank, singular_entropy, stable_rank
from tailwise.spectrum.power_law import fit_tail
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.bidiagonal import MatrixProducts

TRIALS = 200


def heavy_tailed(matrix_with):
    sigma = np.sqrt(np.random.default_rng(3).pareto(1.5, 96) + 1)
    return torch.from_numpy(matrix_with(sigma, 144, 96)).float()


def spiked():
    generator = torch.Generator().manual_seed(4)
    left, right, noise = (torch.randn(*s, generator=generator) for s in ((128, 6), (6, 96), (128, 96)))
    return 2 * left @ right + 0.5 * noise


@pytest.fixture(params=["gaussian", "square gaussian", "power law", "low rank and noise", "trained q", "trained k"])
def matrix(request, matrix_with, pycode):
    kind = request.param
    if kind.endswith("gaussian"):
        return torch.randn(96, 96 if "square" in kind else 240, generator=torch.Generator().manual_seed(2))
    if kind == "power law":
        return heavy_tailed(matrix_with)
    if kind == "low rank and noise":
        return spiked()
    with open_checkpoint(pycode) as checkpoint:
        return checkpoint.read(f"model.layers.4.self_attn.{kind[-1]}_proj.weight")


def truths(spectrum):
    values = spectrum.eigenvalues
    shift = 0.01 * values.mean()
    return shift, {
        "singular_entropy": singular_entropy(spectrum),
        "effective_rank": effective_rank(spectrum),
        "stable_rank": stable_rank(spectrum),
        "alpha_hill": fit_tail(values, "top").alpha,
        "moment_half": float((values**0.5).sum()),
        "moment_2": float((values**2).sum()),
        "log_det": float(np.log(values + shift).sum()),
    }


def test_intervals_of_95_percent_hold_the_truth_in_at_least_90_percent_of_trials(matrix):
    shift, truth = truths(solve(matrix.double()))
    held = dict.fromkeys(truth, 0)
    for seed in range(TRIALS):
        found = estimate(matrix, seed=seed, steps=24)
        intervals = {
            "singular_entropy": found.singular_entropy(),
            "effective_rank": found.effective_rank(),
            "stable_rank": found.stable_rank(),
            "alpha_hill": found.alpha_hill(),
            "moment_half": found.moment(0.5),
            "moment_2": found.moment(2.0),
            "log_det": found.log_det(shift),
        }
        for name, interval in intervals.items():
            held[name] += interval.low <= truth[name] <= interval.high
    assert {name: count / TRIALS for name, count in held.items() if count < 0.9 * TRIALS} == {}


def test_probes_of_signs_hold_the_truth_as_well(matrix_with):
    matrix = heavy_tailed(matrix_with)
    truth = singular_entropy(solve(matrix.double()))
    found = [estimate(matrix, seed=seed, steps=24, kind="rademacher").singular_entropy() for seed in range(100)]
    assert np.mean([interval.low <= truth <= interval.high for interval in found]) >= 0.9


def test_as_many_steps_as_eigenvalues_give_the_exact_trace_of_each_start():
    W = torch.randn(12, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = estimate(W, steps=12, leading=11)  # Q and one direction that is left: nothing is random
    values = solve(W).eigenvalues
    assert found.moment(0.5).value == pytest.approx(float(np.sqrt(values).sum()), rel=1e-9)
    assert found.log_det(0.1).value == pytest.approx(float(np.log(values + 0.1).sum()), rel=1e-9)


def test_the_squared_norm_of_a_given_matrix_is_exact(matrix_with):
    matrix = heavy_tailed(matrix_with)
    squared = estimate(matrix).squared
    assert squared.low == squared.high == pytest.approx(float(matrix.double().square().sum()))


def test_products_alone_are_enough(matrix_with):
    matrix = heavy_tailed(matrix_with)
    operator = MatrixProducts(*matrix.shape, matrix.__matmul__, matrix.T.__matmul__)
    given, products = estimate(matrix), estimate(operator)
    assert products.singular_entropy() == given.singular_entropy()
    assert products.squared.low <= given.squared.value <= products.squared.high


def test_a_matrix_and_its_transpose_have_one_estimate(matrix_with):
    matrix = heavy_tailed(matrix_with)
    assert estimate(matrix).alpha_hill().value == pytest.approx(estimate(matrix.T).alpha_hill().value, rel=1e-4)


@pytest.mark.parametrize("factor", [1e-3, 1e25, 1e-25])
def test_a_factor_leaves_exponent_entropy_and_rank_as_they_are(matrix_with, factor):
    """Also one whose squares leave the type of the matrix."""
    matrix = heavy_tailed(matrix_with)
    first, second = estimate(matrix).metrics(), estimate(factor * matrix).metrics()
    for name in ("alpha_hill", "singular_entropy", "stable_rank"):
        assert second[name] == pytest.approx(first[name], rel=1e-3)


def test_more_probes_make_narrower_intervals():
    matrix = torch.randn(128, 128, generator=torch.Generator().manual_seed(1))
    few, many = (estimate(matrix, probes=probes).singular_entropy() for probes in (6, 48))
    assert many.high - many.low < 0.7 * (few.high - few.low)


def test_the_density_is_that_of_the_eigenvalues():
    matrix = torch.randn(400, 200, generator=torch.Generator().manual_seed(1))
    logs, width = np.log(solve(matrix.double()).eigenvalues), 0.3
    at = np.linspace(logs[0], logs[-1], 9)
    exact = [np.exp(-(((logs - x) / width) ** 2) / 2).mean() / (width * math.sqrt(2 * math.pi)) for x in at]
    value, low, high = estimate(matrix).density(at, width)
    assert np.all((low <= exact) & (exact <= high))
    assert value == pytest.approx(exact, abs=0.03)


def test_low_rank_ends_early_and_is_exact():
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(64, 3, generator=generator, dtype=torch.float64) @ torch.randn(
        3, 48, generator=generator, dtype=torch.float64
    )
    found = estimate(W)
    assert found.moment(0.5).value == pytest.approx(float(torch.linalg.svdvals(W).sum()), rel=1e-6)
    assert found.stable_rank().value == pytest.approx(stable_rank(solve(W)), rel=1e-9)


@pytest.mark.parametrize("matrix", [torch.eye(64), torch.outer(torch.arange(1.0, 65.0), torch.arange(1.0, 49.0))])
def test_a_spectrum_without_a_tail_has_no_exponent(matrix):
    """Equal eigenvalues, and one beside rounding."""
    assert "alpha_hill" not in estimate(matrix).metrics()
    assert "stable_rank" in estimate(matrix).metrics()


def test_a_matrix_of_zeros_has_no_entropy_and_no_rank():
    found = estimate(torch.zeros(16, 24))
    assert math.isnan(found.singular_entropy().value)
    assert math.isnan(found.stable_rank().value)
    assert "stable_rank" not in found.metrics()


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (torch.full((4, 4), torch.nan), "NaN"),
        (torch.eye(4, dtype=torch.float64) * 1e200, "rescale"),
        (torch.zeros(4), "not a matrix"),
        (torch.zeros(0, 4), "not a matrix"),
    ],
)
def test_what_has_no_spectrum_is_a_usage_error(matrix, message):
    with pytest.raises(UsageError, match=message):
        estimate(matrix)


def test_too_little_work_is_a_usage_error():
    with pytest.raises(UsageError, match="too little"):
        LanczosOptions(probes=1)
