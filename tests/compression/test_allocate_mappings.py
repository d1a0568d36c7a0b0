"""Each allocator's own formula, by hand; and rounding to whole numbers."""

from __future__ import annotations

import numpy as np
import pytest

from tailwise.compression.choosing.amounts import ALLOCATORS, AllocatorSettings, ordinal
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.compression.plans.whole_units import rounded


def blocks(count: int, sizes=None) -> list[Candidate]:
    return [
        Candidate(f"{i}.w", f"{i}", "mlp_up", i, int((sizes or [100] * count)[i]), {"alpha": 3.0}) for i in range(count)
    ]


def amounts(name: str, candidates, sparsity: float, **settings) -> np.ndarray:
    return ALLOCATORS[name](candidates, Budget(sparsity), AllocatorSettings(**settings)).amounts


def test_depth_is_the_published_schedule():
    S, beta, L = 0.7, 0.01, 5
    expected = [S - beta * (L - 1) / 2 + beta * (i - 1) for i in range(1, L + 1)]
    np.testing.assert_allclose(amounts("depth", blocks(L), S, beta=beta), expected, atol=1e-12)


def test_depth_by_default_takes_half_of_the_step_that_the_budget_allows():
    found = amounts("depth", blocks(5), 0.7)
    np.testing.assert_allclose(np.diff(found), 0.29 / 4)
    assert (found[0], found[-1]) == (pytest.approx(0.555), pytest.approx(0.845))


def test_depth_with_blocks_of_other_sizes_is_shifted_and_keeps_its_step():
    sizes = [100, 300, 50, 400]
    found = amounts("depth", blocks(4, sizes), 0.6, beta=0.05)
    np.testing.assert_allclose(np.diff(found), 0.05, atol=1e-12)
    assert found @ sizes / sum(sizes) == pytest.approx(0.6)


def test_depth_beyond_its_range_is_cut_and_the_others_take_it_over():
    found = amounts("depth", blocks(5), 0.9, beta=0.1)
    assert found.max() == 0.99
    assert found.mean() == pytest.approx(0.9)


def test_owl_is_the_published_mapping():
    ratios = np.array([5.0, 1.0, 2.0, 3.5])
    kept = (ratios - 1.0) / 4.0 * 0.16  # [0, 2λ]
    expected = 1.0 - (kept - kept.mean() + 0.3)
    found = amounts("owl", blocks(4), 0.7, statistics=dict(enumerate(ratios)))
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_dlp_is_the_published_mapping():
    scores = np.array([0.2, 0.5, 0.9, 0.4])
    importance = 1.0 - scores / scores.sum()
    kept = (importance - importance.min()) / (importance.max() - importance.min()) * 0.30
    expected = 1.0 - (kept - kept.mean() + 0.3)
    found = amounts("dlp", blocks(4), 0.7, statistics=dict(enumerate(scores)))
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("sparsity", "beta"), [(0.3, 0.04), (0.5, 0.04), (0.7, 0.15)])
def test_lsa_is_the_published_mapping(sparsity, beta):
    errors = np.array([30.0, 5.0, 90.0, 41.0])
    importance = 1.0 - errors / errors.sum()
    kept = (importance - importance.min()) / (importance.max() - importance.min()) * 2 * beta
    found = amounts("lsa", blocks(4), sparsity, statistics=dict(enumerate(errors)))
    np.testing.assert_allclose(found, sparsity + kept.mean() - kept, atol=1e-12)


@pytest.mark.parametrize("name", ["owl", "dlp", "lsa"])
def test_the_range_is_twice_the_width(name):
    found = amounts(name, blocks(6), 0.5, statistics={i: float(i * i) for i in range(6)}, width=0.05)
    assert np.ptp(found) == pytest.approx(0.1)


def test_entropy_takes_flat_spectra_when_pruning_and_collapsed_ones_when_factoring():
    candidates = [
        Candidate(f"{i}.w", f"{i}", "mlp_up", i, 100, {"singular_entropy_normalized": 0.1 * i}) for i in range(3)
    ]
    assert np.all(np.diff(amounts("entropy", candidates, 0.5, operator="wanda")) < 0)
    assert np.all(np.diff(amounts("entropy", candidates, 0.5, operator="low_rank")) > 0)


def test_alpha_role_does_not_compare_roles():
    """The roles' levels of z differ by far; a rank within the role sees only the order inside it."""
    base = {"attn_q": 50.0, "mlp_down": 1.0}
    candidates = [
        Candidate(f"{block}.{role}", "", role, block, 100, {"alpha_hill_z": level - block})
        for block in range(4) for role, level in base.items()
    ]  # fmt: skip
    found = amounts("alpha-role", candidates, 0.5).reshape(4, 2)
    np.testing.assert_allclose(found[:, 0], found[:, 1])
    assert np.all(np.diff(found[:, 0]) > 0)


def test_every_operator_has_a_direction():
    planned = {name: item for name, item in OPERATORS.items() if item.planned}
    assert {name for name, item in planned.items() if item.direction < 0} == {"low_rank"}


def test_places_are_counted_in_english():
    assert [ordinal(n) for n in (1, 2, 3, 11, 21, 112)] == [
        "highest", "2nd highest", "3rd highest", "11th highest", "21st highest", "112th highest"]  # fmt: skip


def test_rounding_leaves_the_least_that_whole_numbers_can():
    rng = np.random.default_rng(0)
    for _ in range(5):
        units = rng.choice([7.0, 10.0, 26.0], 12)
        steps = rng.uniform(0, 7, 12)
        found = rounded(steps, units, (0, 7), np.arange(12))
        best = min(
            abs((steps - np.floor(steps)) @ units - sum(u for bit, u in enumerate(units) if mask >> bit & 1))
            for mask in range(1 << 12)
        )
        assert abs((found - steps) @ units) == pytest.approx(best, abs=0.2)
        assert np.all(np.abs(found - steps) < 1.0 + 1e-9)


def test_equal_remainders_are_spread_along_depth():
    found = rounded(np.full(40, 2.5), np.ones(40), (0, 7), np.arange(40))
    assert found.sum() == 100
    halves = found[:20].sum(), found[20:].sum()
    assert abs(halves[0] - halves[1]) <= 2
