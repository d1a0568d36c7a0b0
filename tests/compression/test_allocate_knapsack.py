"""The knapsack against trying everything, and its bound."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from tailwise.compression.choosing.knapsack import Knapsack, solve
from tailwise.core.errors import UsageError


def made(items: int, levels: int, seed: int, noise: float = 0.05):
    """Losses (items, levels) that grow with what is taken, and weights that are kept."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(100, 3000, items).astype(float)
    taken = np.linspace(0.0, 0.9, levels)
    losses = rng.lognormal(0.0, 1.0, (items, 1)) * taken**2 + noise * rng.standard_normal((items, levels))
    return losses, sizes[:, None] * (1.0 - taken), 0.45 * sizes.sum()


def by_trying(losses, weights, budget: float, slack: float) -> float:
    rows = np.arange(len(losses))
    fits = [
        losses[rows, pick].sum()
        for pick in product(range(losses.shape[1]), repeat=len(losses))
        if budget * (1 - slack) <= weights[rows, pick].sum() <= budget
    ]
    return min(fits)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("slack", [0.05, 1.0])
def test_it_finds_what_trying_everything_finds(seed, slack):
    losses, weights, budget = made(6, 4, seed)
    found = solve(Knapsack(losses, weights, budget, slack))
    assert found.loss == pytest.approx(by_trying(losses, weights, budget, slack), abs=1e-9)
    assert found.exact


def test_where_less_would_lose_less_the_budget_is_used_up_all_the_same():
    losses, weights, budget = made(6, 4, 3)
    found = solve(Knapsack(-losses, weights, budget, 0.05))
    assert found.loss == pytest.approx(by_trying(-losses, weights, budget, 0.05), abs=1e-9)
    assert 0.95 * budget <= found.weight <= budget


@pytest.mark.parametrize("items", [300, 1000])
def test_a_large_one_is_proven_best_and_meets_its_budget(items):
    losses, weights, budget = made(items, 8, 0, noise=0.01)
    found = solve(Knapsack(losses, weights, budget))
    assert found.exact
    assert found.bound <= found.loss
    assert 0.999 * budget <= found.weight <= budget * (1 + 1e-9)


def test_the_order_of_the_items_does_not_matter():
    losses, weights, budget = made(40, 5, 1)
    order = np.random.default_rng(0).permutation(40)
    plain, mixed = solve(Knapsack(losses, weights, budget)), solve(Knapsack(losses[order], weights[order], budget))
    assert mixed.loss == pytest.approx(plain.loss, abs=1e-9)


def test_a_level_that_is_not_allowed_is_not_taken():
    losses, weights, budget = made(20, 4, 2)
    losses[:, 2] = np.inf
    assert 2 not in solve(Knapsack(losses, weights, budget, 0.05)).levels


def test_a_budget_out_of_reach_says_what_can_be_reached():
    losses, weights, _ = made(5, 4, 0)
    for budget in (0.5 * weights.min(axis=1).sum(), 2 * weights.max(axis=1).sum()):
        with pytest.raises(UsageError, match="reachable: "):
            solve(Knapsack(losses, weights, budget))


def test_a_gap_between_what_levels_weigh_is_told():
    with pytest.raises(UsageError, match="allow more slack"):
        solve(Knapsack(np.array([[0.0, 1.0]]), np.array([[10.0, 1.0]]), 5.0))


@pytest.mark.parametrize(
    ("losses", "weights"),
    [
        (np.zeros((2, 3)), np.zeros((3, 2))),
        (np.zeros(3), np.zeros(3)),
        (np.full((2, 2), np.nan), np.ones((2, 2))),
        (np.full((2, 2), np.inf), np.ones((2, 2))),
        (np.zeros((2, 2)), -np.ones((2, 2))),
    ],
)
def test_tables_that_cannot_be_are_refused(losses, weights):
    with pytest.raises(UsageError):
        solve(Knapsack(losses, weights, 1.0))
