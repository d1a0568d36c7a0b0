"""One suite that every allocator of number formats passes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from tailwise.compression.choosing.bit_formats import ASSIGNERS, Choices, FormatGroup, FormatSettings
from tailwise.compression.making.request import parsed_formats
from tailwise.compression.plans.bits import bits_per_weight
from tailwise.compression.plans.candidates import Candidate
from tailwise.compression.plans.fusing import fused
from tailwise.core.errors import UsageError

ROLES = {"attn_q": (64, 256), "attn_k": (32, 256), "mlp_up": (704, 256), "mlp_down": (256, 704)}
FORMATS = parsed_formats(("int2-g64", "int4-g64", "mxfp8", "bf16"))
BLOCKS = 6

NAMES = ("uniform", "depth", "ends", "alpha", "alphaq", "distortion", "outputs", "sensitivity")
names = pytest.mark.parametrize("name", NAMES)


def tensors(seed: int = 0) -> list[Candidate]:
    rng = np.random.default_rng(seed)
    return [
        Candidate(f"layers.{block}.m.{role}.weight", f"layers.{block}.m.{role}", role, block, rows * cols,
                  {"alpha": float(rng.uniform(1.5, 6.0)), "variance": float(rng.lognormal(-6, 1))}, ((rows, cols, 1),))
        for block in range(BLOCKS) for role, (rows, cols) in ROLES.items()
    ]  # fmt: skip


OUTSIDE = replace(tensors()[0], tensor="lm_head.weight", role="lm_head", block=None)


def table(candidates: list[Candidate]) -> dict[tuple[str, str], float]:
    """Each tensor in each format: a loss that falls with bits."""
    return {
        (item.tensor, chosen.name): (1.0 + sum(map(ord, item.tensor)) % 7) * 4.0**-chosen.element_bits
        for item in candidates
        for chosen in FORMATS
    }


SETTINGS = FormatSettings(errors=table([OUTSIDE, *tensors()]), losses=table([OUTSIDE, *tensors()]))


def choices(candidates: list[Candidate], mean: float | None) -> Choices:
    groups = tuple(FormatGroup(name, members) for name, members in fused(candidates).items())
    bits = np.array([
        [sum(item.n_params * bits_per_weight(chosen, item.shape) for item in group.members) for chosen in FORMATS]
        for group in groups
    ])  # fmt: skip
    total = sum(item.n_params for item in candidates)
    element = np.array([chosen.element_bits for chosen in FORMATS])
    return Choices(groups, tuple(c.name for c in FORMATS), element, bits, None if mean is None else mean * total)


def mean_of(given: Choices, found) -> float:
    return given.weight(found.levels) / float(given.sizes.sum())


def test_the_built_in_allocators_are_these_and_in_this_order():
    assert tuple(ASSIGNERS)[: len(NAMES)] == NAMES


@names
@pytest.mark.parametrize("bits", [2.25, 2.6, 3.4, 4.5, 8.0, 12.0, 16.0])
def test_the_budget_is_kept_and_used(name, bits):
    given = choices(tensors(), bits)
    found = ASSIGNERS[name](given, SETTINGS)
    assert mean_of(given, found) <= bits * (1 + 1e-9)
    assert mean_of(given, found) >= bits * (1 - 1e-2)
    assert len(found.reasons) == len(given.groups)
    assert all(found.reasons)


@names
def test_the_order_of_the_groups_does_not_matter(name):
    given = choices(tensors(), 3.4)
    order = np.random.default_rng(1).permutation(len(given.groups))
    turned = replace(given, groups=tuple(given.groups[index] for index in order), bits=given.bits[order])
    first, second = ASSIGNERS[name](given, SETTINGS), ASSIGNERS[name](turned, SETTINGS)
    assert first.levels[order].tolist() == second.levels.tolist()
    assert [first.reasons[index] for index in order] == list(second.reasons)


@names
def test_a_format_that_is_not_offered_is_not_chosen(name):
    given = choices(tensors(), 5.0)
    bits = given.bits.copy()
    bits[::2, 0] = bits[1::3, 1] = np.inf
    given = replace(given, bits=bits)
    found = ASSIGNERS[name](given, SETTINGS)
    assert np.isfinite(given.weight(found.levels))
    assert mean_of(given, found) <= 5.0 * (1 + 1e-9)


@names
def test_tensors_without_a_metric_and_outside_the_blocks_are_planned_for_too(name):
    bare = replace(tensors()[5], metrics={"alpha": None, "variance": 1e-3})
    given = choices([OUTSIDE, *tensors()[:5], bare, *tensors()[6:]], 4.5)
    found = ASSIGNERS[name](given, SETTINGS)
    assert mean_of(given, found) == pytest.approx(4.5, rel=1e-2)


@names
def test_nothing_to_choose_for_is_refused(name):
    given = choices(tensors(), 4.0)
    with pytest.raises(UsageError, match="nothing to spend"):
        ASSIGNERS[name](replace(given, groups=()), SETTINGS)


@names
def test_without_a_budget_it_asks_for_one(name):
    with pytest.raises(UsageError, match="how many bits"):
        ASSIGNERS[name](choices(tensors(), None), SETTINGS)


def test_the_better_format_goes_to_early_blocks_under_depth_and_to_low_alpha_under_alpha():
    given = choices(tensors(), 3.2)
    low, high = given.bits[:, 1], 0
    blocks = np.array([group.block for group in given.groups])
    levels = ASSIGNERS["depth"](given, SETTINGS).levels
    assert blocks[levels > high].mean() < blocks[levels == high].mean()
    alphas = np.array([group.mean("alpha") for group in given.groups])
    levels = ASSIGNERS["alpha"](given, SETTINGS).levels
    assert alphas[levels > high].mean() < alphas[levels == high].mean()
    assert len(low) == len(given.groups)


def test_uniform_is_no_slope_along_depth():
    given = choices(tensors(), 3.2)
    levels = ASSIGNERS["uniform"](given, SETTINGS).levels
    blocks = np.array([group.block for group in given.groups])
    better = [int((levels[blocks == block] > 0).sum()) for block in range(BLOCKS)]
    assert max(better) - min(better) <= 2


@pytest.mark.parametrize("name", ["distortion", "sensitivity"])
def test_a_table_that_is_missing_or_has_no_numbers_is_refused(name):
    given = choices(tensors(), 3.4)
    field = {"distortion": "errors", "sensitivity": "losses"}[name]
    nan = dict.fromkeys(table(tensors()), float("nan"))
    for wrong, said in ((None, "there is no"), ({}, "measured in none"), (nan, "is no number")):
        with pytest.raises(UsageError, match=said):
            ASSIGNERS[name](given, FormatSettings(**{field: wrong}))
