"""Magnitude, Wanda, SparseGPT and low rank on one matrix."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tailwise.compression.operators.operator import Amount
from tailwise.compression.operators.registered import OPERATORS
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations

HALF, TWO_OF_FOUR = Amount(0.5), Amount(0.5, (2, 4))


@pytest.fixture(scope="module")
def W():
    return torch.randn(40, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def X():
    """Inputs of very different sizes that depend on one another: (tokens × in)."""
    generator = torch.Generator().manual_seed(1)
    mix = torch.randn(64, 64, generator=generator) * torch.logspace(-1, 1, 64)
    return torch.randn(500, 64, generator=generator) @ mix


@pytest.fixture(scope="module")
def seen(X):
    return Activations(norms=(X.square().sum(0) / 4).sqrt(), hessian=2.0 / 4 * X.T @ X)


def loss(X, W, after) -> float:
    return float((X @ (W - after).T).square().sum())


def reference_sparsegpt(W, H, sparsity, pattern, width):
    """The published algorithm in float64, written column by column with the full inverse kept explicit."""
    W, H = W.double().numpy().copy(), H.double().numpy().copy()
    H += 0.01 * np.mean(np.diag(H)) * np.eye(len(H))
    U = np.linalg.cholesky(np.linalg.inv(H)).T
    gone = np.zeros(W.shape, dtype=bool)
    for j in range(W.shape[1]):
        if pattern is None and j % width == 0:
            end = min(j + width, W.shape[1])
            scores = W[:, j:end] ** 2 / np.diag(U)[j:end] ** 2
            limit = np.sort(scores.ravel())[int(scores.size * sparsity)]
            gone[:, j:end] = scores < limit
        if pattern is not None and j % pattern[1] == 0:
            end = j + pattern[1]
            order = np.argsort(W[:, j:end] ** 2 / np.diag(U)[j:end] ** 2, axis=1)
            np.put_along_axis(gone[:, j:end], order[:, : pattern[1] - pattern[0]], True, axis=1)
        error = np.where(gone[:, j], W[:, j], 0.0) / U[j, j]
        W[:, j:] -= np.outer(error, U[j, j:])
        W[gone[:, j], j] = 0.0
    return np.where(gone, 0.0, W), ~gone


def test_the_registry_says_what_each_needs():
    needs = {name: item.needs for name, item in OPERATORS.items() if item.does == "prune" and item.work is not None}
    assert needs == {"magnitude": "none", "wanda": "norms", "sparsegpt": "hessian", "low_rank": "none",
                     "low_rank_whitened": "hessian"}  # fmt: skip


@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt"])
@pytest.mark.parametrize("amount", [HALF, TWO_OF_FOUR, Amount(0.625, (3, 8)), Amount(0.0)])
def test_the_amount_is_reached_and_the_input_left_alone(W, seen, name, amount):
    before = W.clone()
    found = OPERATORS[name](W, amount, seen)
    assert float((found.weight == 0).double().mean()) == amount.sparsity
    assert torch.equal(found.kept, found.weight != 0)
    assert torch.equal(W, before)


@pytest.mark.parametrize("name", ["magnitude", "wanda"])
def test_what_stays_is_unchanged(W, seen, name):
    found = OPERATORS[name](W, HALF, seen)
    assert torch.equal(found.weight[found.kept], W[found.kept])


def test_magnitude_takes_one_threshold_for_the_matrix(W):
    found = OPERATORS["magnitude"](W, HALF)
    assert W[~found.kept].abs().max() < W[found.kept].abs().min()


def test_wanda_compares_within_each_row(W, seen):
    found = OPERATORS["wanda"](W, HALF, seen)
    scores = W.abs() * seen.norms
    for row, kept in zip(scores, found.kept, strict=True):
        assert int(kept.sum()) == 32
        assert row[~kept].max() < row[kept].min()


def test_wanda_does_not_depend_on_the_scale_of_the_inputs(W, seen):
    scaled = Activations(norms=seen.norms * 7.0)
    assert torch.equal(OPERATORS["wanda"](W, HALF, seen).kept, OPERATORS["wanda"](W, HALF, scaled).kept)


@pytest.mark.parametrize("amount", [HALF, TWO_OF_FOUR, Amount(0.625, (3, 8)), Amount(1 / 3, (2, 3))])
def test_sparsegpt_is_the_published_algorithm(amount):
    generator = torch.Generator().manual_seed(3)
    W = torch.randn(24, 264, generator=generator)  # three blocks of columns, the last one short
    X = torch.randn(900, 264, generator=generator) @ torch.randn(264, 264, generator=generator)
    H = X.T @ X / 100
    found = OPERATORS["sparsegpt"](W, amount, Activations(hessian=H))
    width = 128 if amount.pattern is None else 128 // amount.pattern[1] * amount.pattern[1]
    weight, kept = reference_sparsegpt(W, H, amount.sparsity, amount.pattern, width)
    assert (found.kept.numpy() == kept).mean() > 0.999
    both = found.kept.numpy() & kept
    assert np.abs(found.weight.numpy() - weight)[both].max() < 0.05
    assert np.abs(found.weight.numpy() - weight)[both].mean() < 1e-3


def test_sparsegpt_loses_less_than_wanda_and_wanda_less_than_magnitude(W, X, seen):
    lost = [loss(X, W, OPERATORS[name](W, HALF, seen).weight) for name in ("sparsegpt", "wanda", "magnitude")]
    assert lost == sorted(lost)


def test_with_independent_inputs_sparsegpt_changes_nothing_that_stays(W):
    found = OPERATORS["sparsegpt"](W, HALF, Activations(hessian=torch.eye(64) * 3.0))
    assert torch.allclose(found.weight[found.kept], W[found.kept])
    assert torch.equal(found.kept, OPERATORS["magnitude"](W, HALF).kept)  # 64 columns: one block, one threshold


def test_weights_of_inputs_that_are_always_zero_go_first(W, X):
    dead = X.clone()
    dead[:, 10:20] = 0.0
    found = OPERATORS["sparsegpt"](W, HALF, Activations(hessian=dead.T @ dead / 2))
    assert not found.kept[:, 10:20].any()
    assert float((~found.kept).double().mean()) == 0.5


def test_few_inputs_are_damped_until_they_can_be_inverted(W):
    x = torch.randn(2, 64, generator=torch.Generator().manual_seed(4)) * 1e4
    found = OPERATORS["sparsegpt"](W, HALF, Activations(hessian=x.T @ x))
    assert torch.isfinite(found.weight).all()


def test_inputs_that_are_not_finite_are_an_error(W):
    with pytest.raises(UnreadableError, match="not finite"):
        OPERATORS["sparsegpt"](W, HALF, Activations(hessian=torch.full((64, 64), float("inf"))))


@pytest.mark.parametrize("name", ["wanda", "sparsegpt", "low_rank_whitened"])
def test_what_an_operator_needs_is_asked_for(W, name):
    with pytest.raises(UsageError, match="needs the"):
        OPERATORS[name](W, HALF)


def test_a_pattern_that_does_not_divide_the_inputs_is_an_error(W):
    with pytest.raises(UsageError, match="does not divide 64"):
        OPERATORS["magnitude"](W, Amount(1 / 3, (2, 3)))


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.063])
def test_a_sparsity_out_of_reach_is_an_error(sparsity):
    with pytest.raises(UsageError, match="cannot be reached"):
        Amount(sparsity)


def test_low_rank_is_the_nearest_matrix_of_that_rank(W):
    found = OPERATORS["low_rank"](W, Amount(rank=10))
    left, right = found.factors
    sigma = torch.linalg.svdvals(W)
    assert left.shape == (40, 10)
    assert right.shape == (10, 64)
    assert torch.allclose(left @ right, found.weight, atol=1e-5)
    assert float((W - found.weight).norm()) == pytest.approx(float(sigma[10:].norm()), rel=1e-5)


def test_the_whitened_rank_changes_the_outputs_least(W, X, seen):
    plain = loss(X, W, OPERATORS["low_rank"](W, Amount(rank=10)).weight)
    whitened = loss(X, W, OPERATORS["low_rank_whitened"](W, Amount(rank=10), seen).weight)
    least = float(torch.linalg.svdvals(X.double() @ W.double().T)[10:].square().sum())
    assert whitened == pytest.approx(least, rel=1e-3)
    assert whitened < plain


@pytest.mark.parametrize("name", ["low_rank", "low_rank_whitened"])
def test_the_full_rank_gives_the_matrix_back(W, seen, name):
    assert torch.allclose(OPERATORS[name](W, Amount(rank=40), seen).weight, W, atol=1e-3)


@pytest.mark.parametrize("rank", [None, 0, 41])
def test_a_rank_out_of_reach_is_an_error(W, rank):
    with pytest.raises(UsageError, match="cannot be reached"):
        OPERATORS["low_rank"](W, Amount(rank=rank))


def test_whitening_by_inputs_that_span_too_little_is_damped(W):
    x = torch.zeros(100, 64)
    x[:, :5] = torch.randn(100, 5, generator=torch.Generator().manual_seed(5))
    found = OPERATORS["low_rank_whitened"](W, Amount(rank=20), Activations(hessian=x.T @ x))
    assert torch.isfinite(found.weight).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", ["magnitude", "wanda", "sparsegpt", "low_rank", "low_rank_whitened"])
def test_a_matrix_that_is_not_finite_is_an_error(W, seen, name, value):
    broken = W.clone()
    broken[: len(W) // 4] = value
    with pytest.raises(UnreadableError, match="entries that are not finite"):
        OPERATORS[name](broken, Amount(0.9, rank=2), seen)


def test_magnitude_leaves_double_precision_as_it_is():
    W = torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    found = OPERATORS["magnitude"](W, HALF)
    assert found.kept is not None
    assert torch.equal(found.weight, W * found.kept)
