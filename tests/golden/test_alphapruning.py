"""AlphaPruning (Lu et al. 2024, arXiv:2410.10912): its mapping from α to sparsity, to the digit."""

from __future__ import annotations

import numpy as np
import pytest

from tailwise.compression.choosing.amounts import ALLOCATORS, AllocatorSettings
from tailwise.compression.choosing.shares import shares
from tailwise.compression.plans.budget import Budget
from tailwise.compression.plans.candidates import Candidate

# Shapes of a block of LLaMA-7B; every block is the same.
LLAMA = {"attn_q": 4096**2, "attn_k": 4096**2, "attn_v": 4096**2, "attn_o": 4096**2,
         "mlp_gate": 4096 * 11008, "mlp_up": 4096 * 11008, "mlp_down": 4096 * 11008}  # fmt: skip


def model(alphas: np.ndarray, shapes: dict[str, int]) -> list[Candidate]:
    """`alphas` is (blocks, roles)."""
    return [
        Candidate(f"{block}.{role}", f"{block}.{role}", role, block, size, {"alpha": float(alpha)})
        for block, row in enumerate(alphas)
        for (role, size), alpha in zip(shapes.items(), row, strict=True)
    ]


def amounts(candidates, sparsity: float, *, clamp: bool = True, **settings) -> np.ndarray:
    return ALLOCATORS["alpha"](candidates, Budget(sparsity, clamp), AllocatorSettings("wanda", **settings)).amounts


def as_published(values: np.ndarray, sizes: np.ndarray, sparsity: float, tau: float) -> np.ndarray:
    """Equations of the paper's section on linear mapping, written out a second time."""
    left, right = sparsity * (1 - tau), sparsity * (1 + tau)
    lines = [(value - values.min()) / (values.max() - values.min()) * (right - left) + left for value in values]
    return np.array(lines) * (sparsity * sizes.sum()) / sum(s * d for s, d in zip(lines, sizes, strict=True))


@pytest.mark.parametrize("tau", [0.1, 0.2, 0.3])
def test_shares_span_one_minus_tau_to_one_plus_tau(tau):
    found = shares(np.array([2.0, 3.1, 4.0, 7.5]), tau, +1)
    assert found.min() == pytest.approx(1 - tau)
    assert found.max() == pytest.approx(1 + tau)
    assert found[1] == pytest.approx((3.1 - 2.0) / 5.5 * 2 * tau + 1 - tau)


@pytest.mark.parametrize("sparsity", [0.5, 0.6, 0.7])
@pytest.mark.parametrize("mapping", ["block", "matrix"])
def test_amounts_are_the_published_mapping(sparsity, mapping):
    alphas = np.random.default_rng(0).uniform(1.8, 5.0, (32, 7))
    candidates = model(alphas, LLAMA)
    values = np.repeat(alphas.mean(axis=1), 7) if mapping == "block" else alphas.ravel()
    sizes = np.tile(list(LLAMA.values()), 32).astype(float)
    expected = as_published(values, sizes, sparsity, 0.3)
    np.testing.assert_allclose(amounts(candidates, sparsity, mapping=mapping), expected, rtol=1e-12)


def test_at_80_percent_the_published_code_asks_for_1063_and_no_clamp_gives_it():
    # 32 equal blocks whose shares have the mean 0.8 · 1.3 / 1.063: the block of highest α is then asked for 1.063.
    mean_place = (0.8 * 1.3 / 1.063 - 0.7) / 0.6
    places = np.concatenate([[0.0, 1.0], np.full(30, (32 * mean_place - 1.0) / 30)])
    candidates = model(np.repeat(2.0 + 3.0 * places[:, None], 7, axis=1), LLAMA)
    raw = amounts(candidates, 0.8, clamp=False)
    assert raw.max() == pytest.approx(1.063, abs=5e-4)
    assert raw.min() == pytest.approx(1.063 * 0.7 / 1.3, abs=5e-4)
    sizes = np.array([item.n_params for item in candidates], dtype=float)
    assert raw @ sizes / sizes.sum() == pytest.approx(0.8, abs=1e-12)


def test_clamped_the_same_stays_at_099_and_the_others_take_over_what_is_cut():
    mean_place = (0.8 * 1.3 / 1.063 - 0.7) / 0.6
    places = np.concatenate([[0.0, 1.0], np.full(30, (32 * mean_place - 1.0) / 30)])
    candidates = model(np.repeat(2.0 + 3.0 * places[:, None], 7, axis=1), LLAMA)
    raw, held = amounts(candidates, 0.8, clamp=False), amounts(candidates, 0.8)
    sizes = np.array([item.n_params for item in candidates], dtype=float)
    assert held.max() == 0.99
    assert held @ sizes / sizes.sum() == pytest.approx(0.8, abs=1e-9)
    below = raw < 0.99
    ratio = held[below] / raw[below]
    assert np.ptp(ratio) < 1e-12  # one η for all that are not cut
    assert ratio[0] > 1.0


def test_mixed_gives_each_block_its_share_and_splits_it_inside():
    alphas = np.random.default_rng(3).uniform(1.8, 5.0, (8, 7))
    candidates = model(alphas, LLAMA)
    block, mixed = (amounts(candidates, 0.4, mapping=mapping).reshape(8, 7) for mapping in ("block", "mixed"))
    sizes = np.array(list(LLAMA.values()), dtype=float)
    np.testing.assert_allclose(mixed @ sizes / sizes.sum(), block[:, 0], atol=1e-12)
    for row, values in zip(mixed, alphas, strict=True):
        assert row.argmax() == values.argmax()
        assert row.max() / row.min() == pytest.approx(1.3 / 0.7)


def test_high_alpha_is_pruned_more_and_factored_less():
    candidates = model(np.repeat(np.array([[2.0], [4.0]]), 7, axis=1), LLAMA)
    pruned = amounts(candidates, 0.6)
    assert pruned[-1] > pruned[0]
    factored = ALLOCATORS["alpha"](candidates, Budget(0.6), AllocatorSettings("low_rank")).amounts
    assert factored[-1] < factored[0]
