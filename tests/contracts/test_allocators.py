"""One suite that every allocator passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tailwise.compression.choosing.amounts import ALLOCATORS, AllocatorSettings
from tailwise.compression.plans.budget import MOST, Budget
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError

ROLES = {"attn_q": 65_536, "attn_v": 32_768, "mlp_up": 180_224, "mlp_down": 180_224}
METRICS = ("alpha", "alpha_hill", "alpha_hill_z", "singular_entropy_normalized")
BLOCKS = 6
LEVELS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)

NAMES = ("uniform", "depth", "alpha", "alpha-role", "entropy", "owl", "dlp", "lsa", "sensitivity", "blend")
names = pytest.mark.parametrize("name", NAMES)
operators = pytest.mark.parametrize("operator", ["wanda", "low_rank"])


def tensors(seed: int = 0, blocks: int = BLOCKS) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [
        Candidate(f"layers.{block}.{role}.weight", f"layers.{block}.{role}", role, block, size + 16 * block,
                  dict(zip(METRICS, rng.uniform(1.5, 6.0, 4), strict=True)), ((1, size + 16 * block, 1),))
        for block in range(blocks) for role, size in ROLES.items()
    ]  # fmt: skip


def losses(candidates: list[Candidate], equal: bool = False) -> dict[tuple[str, float], float]:
    """Each tensor at each level: a loss that rises ever faster."""
    return {
        (item.tensor, level): (1.0 if equal else 1.0 + sum(map(ord, item.tensor)) % 7) * item.n_params * level**3
        for item in candidates
        for level in LEVELS
    }


def spend(found, sizes) -> float:
    return float(np.dot(found.amounts, sizes) / np.sum(sizes))


OUTSIDE = replace(tensors()[0], tensor="lm_head.weight", role="lm_head", block=None)
SETTINGS = AllocatorSettings(
    statistics={block: (3.0 * block) % 7 for block in range(BLOCKS)},
    losses=losses([OUTSIDE, *tensors()]),
    weights={"alpha": 1.0, "entropy": -0.5, "owl": 0.25},
)


def sizes_of(candidates) -> list[int]:
    return [item.n_params for item in candidates]


def test_the_built_in_allocators_are_these_and_in_this_order():
    assert tuple(ALLOCATORS)[: len(NAMES)] == NAMES


@names
@operators
@pytest.mark.parametrize("sparsity", [0.0, 0.05, 0.5, 0.7, 0.9, 0.97, 0.99])
def test_the_budget_holds_and_amounts_stay_within_their_range(name, operator, sparsity):
    candidates = tensors()
    found = ALLOCATORS[name](candidates, Budget(sparsity), replace(SETTINGS, operator=operator))
    assert spend(found, sizes_of(candidates)) == pytest.approx(sparsity, abs=1e-6)
    assert found.amounts.min() >= 0.0
    assert found.amounts.max() <= MOST
    assert len(found.reasons) == len(candidates)
    assert all(found.reasons)


@names
def test_the_order_of_the_rows_does_not_matter(name):
    candidates = tensors()
    order = np.random.default_rng(1).permutation(len(candidates))
    plain = ALLOCATORS[name](candidates, Budget(0.7), SETTINGS)
    mixed = ALLOCATORS[name]([candidates[i] for i in order], Budget(0.7), SETTINGS)
    np.testing.assert_allclose(mixed.amounts, plain.amounts[order], rtol=0, atol=1e-12)
    assert mixed.reasons == tuple(plain.reasons[i] for i in order)


@names
@pytest.mark.parametrize("mapping", ["block", "matrix", "mixed"])
def test_a_tensor_without_a_tail_gets_a_finite_amount_and_moves_no_other_share(name, mapping):
    candidates = tensors()
    candidates[5] = replace(candidates[5], metrics=dict.fromkeys(METRICS))
    found = ALLOCATORS[name](candidates, Budget(0.7), replace(SETTINGS, mapping=mapping))
    assert np.isfinite(found.amounts).all()
    assert spend(found, sizes_of(candidates)) == pytest.approx(0.7, abs=1e-6)


@names
def test_one_tensor_gets_the_whole_budget(name):
    found = ALLOCATORS[name](tensors()[:1], Budget(0.7), SETTINGS)
    assert found.amounts == pytest.approx([0.7])


@names
@pytest.mark.parametrize("mapping", ["block", "matrix", "mixed"])
def test_where_everything_is_equal_the_amounts_are_uniform(name, mapping):
    candidates = [replace(item, metrics=dict.fromkeys(METRICS, 3.0)) for item in tensors(blocks=1)]
    equal = replace(SETTINGS, mapping=mapping, statistics={0: 2.0}, losses=losses(candidates, equal=True))
    found = ALLOCATORS[name](candidates, Budget(0.7), equal)
    assert found.amounts == pytest.approx([0.7] * len(candidates), abs=1e-12)


@names
def test_a_tensor_outside_the_blocks_is_planned_for_too(name):
    candidates = [OUTSIDE, *tensors()]
    found = ALLOCATORS[name](candidates, Budget(0.7), SETTINGS)
    assert spend(found, sizes_of(candidates)) == pytest.approx(0.7, abs=1e-6)


@names
def test_nothing_to_spread_over_is_refused(name):
    with pytest.raises(UsageError, match="nothing to spread"):
        ALLOCATORS[name]([], Budget(0.7), SETTINGS)


@pytest.mark.parametrize("sparsity", [-0.1, 0.991, 1.0, 70.0, float("nan"), float("inf")])
def test_a_budget_out_of_reach_says_what_can_be_reached(sparsity):
    with pytest.raises(UsageError, match=r"fraction from 0 to 0\.99"):
        Budget(sparsity)


def test_shares_of_zero_can_put_a_budget_out_of_reach_and_the_range_is_said():
    with pytest.raises(UsageError, match=r"reachable: 0 to 0\.\d+"):
        ALLOCATORS["alpha"](tensors(), Budget(0.98), AllocatorSettings(tau=1.0, mapping="block"))


@pytest.mark.parametrize("name", ["alpha", "alpha-role", "entropy"])
def test_low_rank_turns_the_sign(name):
    candidates = tensors()
    prune, low_rank = (
        ALLOCATORS[name](candidates, Budget(0.5), replace(SETTINGS, operator=operator)).amounts
        for operator in ("wanda", "low_rank")
    )
    assert np.corrcoef(prune, low_rank)[0, 1] < -0.9


@pytest.mark.parametrize("name", ["owl", "dlp", "lsa"])
def test_without_statistics_of_the_blocks_it_says_what_it_takes(name):
    with pytest.raises(UsageError, match="calibration text"):
        ALLOCATORS[name](tensors(), Budget(0.7), AllocatorSettings())


@pytest.mark.parametrize("name", ["owl", "dlp", "lsa"])
def test_a_block_without_a_finite_statistic_is_refused(name):
    for wrong in ({0: 1.0}, dict.fromkeys(range(BLOCKS), float("nan"))):
        with pytest.raises(UsageError, match=r"no finite .* for block"):
            ALLOCATORS[name](tensors(), Budget(0.7), AllocatorSettings(statistics=wrong))


@pytest.mark.parametrize("name", ["alpha", "alpha-role", "entropy"])
def test_an_audit_without_the_metric_is_refused(name):
    bare = [replace(item, metrics={}) for item in tensors()]
    with pytest.raises(UsageError, match="the audit has no"):
        ALLOCATORS[name](bare, Budget(0.7), AllocatorSettings())


def test_without_losses_or_with_one_that_is_missing_or_no_number_sensitivity_says_so():
    for given, said in (
        (None, "calibration text"),
        ({}, "was not measured"),
        ({(tensors()[0].tensor, 0.5): float("nan")}, "measure it again"),
    ):
        with pytest.raises(UsageError, match=said):
            ALLOCATORS["sensitivity"](tensors(), Budget(0.7), AllocatorSettings(losses=given))


def test_sensitivity_spares_what_is_dear():
    candidates = tensors()
    dear = candidates[3].tensor
    table = {
        (tensor, level): loss * (50.0 if tensor == dear else 1.0)
        for (tensor, level), loss in losses(candidates).items()
    }
    found = ALLOCATORS["sensitivity"](candidates, Budget(0.6), AllocatorSettings(losses=table))
    assert found.amounts.argmin() == 3
