"""Rows and columns: whether their sizes are those of entries in random order, and which are next to nothing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import stats

from tailwise.spectrum.solve import solve
from tailwise.spectrum.spectrum import pool


def esd(weights: np.ndarray | torch.Tensor, **options):
    return solve(torch.as_tensor(weights), **options)


def of_anovas(weights: np.ndarray) -> float:
    """The same from scipy's one-way analyses of variance, with the variance of all entries as the null has it."""
    found = []
    for values in (weights, np.abs(weights)):
        for groups in (values, values.T):
            count, size = groups.shape
            scatter = size * np.sum((groups.mean(1) - values.mean()) ** 2) / values.var()
            spread = 2 / (9 * (count - 1))
            found.append(abs(((scatter / (count - 1)) ** (1 / 3) - (1 - spread)) / math.sqrt(spread)))
    return max(found)


@pytest.mark.parametrize("shape", [(64, 96), (96, 64), (80, 80), (16, 700)])
@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16])
def test_it_is_what_analyses_of_variance_give(shape, kind):
    rng = np.random.default_rng(0)
    weights = torch.tensor(rng.normal(0.02, 1.0, shape) * rng.uniform(0.5, 1.5, (shape[0], 1))).to(kind)
    assert esd(weights).order_z == pytest.approx(of_anovas(weights.to(torch.float64).numpy()), rel=1e-5)


def test_the_cube_root_is_as_likely_as_the_analysis_of_variance_says():
    """F of 63 and many degrees of freedom at its 99.9 % point is a normal deviate of 3.09."""
    groups = 63
    ratio = stats.chi2.isf(1e-3, groups) / groups
    spread = 2 / (9 * groups)
    assert (ratio ** (1 / 3) - (1 - spread)) / math.sqrt(spread) == pytest.approx(stats.norm.isf(1e-3), abs=0.01)


@pytest.mark.parametrize("shape", [(64, 64), (50, 400), (300, 60)])
@pytest.mark.parametrize("draw", ["normal", "uniform", "heavy"])
def test_entries_in_random_order_stay_below_four(shape, draw):
    rng = np.random.default_rng(1)
    make = {
        "normal": lambda: rng.normal(size=shape),
        "uniform": lambda: rng.uniform(-1, 1, shape),
        "heavy": lambda: rng.standard_t(4, shape),
    }[draw]
    found = [esd(make()).order_z for _ in range(60)]
    assert max(found) < 4
    assert 0.9 < np.median(found) < 1.9  # the largest of four normal deviates has its median at 1.4


def test_scale_offset_and_transposition_change_nothing():
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(60, 90)) * rng.uniform(0.8, 1.2, (60, 1))
    known = esd(weights).order_z
    for other in (weights * 1e-6, weights * 1e150, weights.T.copy(), -weights):
        assert esd(other).order_z == pytest.approx(known, rel=1e-9)


@pytest.mark.parametrize("spoil", ["rows", "columns", "mean of rows", "mean of columns"])
def test_one_vector_in_eight_that_differs_is_seen(spoil):
    rng = np.random.default_rng(3)
    weights = rng.normal(size=(64, 128))
    if spoil == "rows":
        weights[::8] *= 1.5
    elif spoil == "columns":
        weights[:, ::8] *= 1.7
    elif spoil == "mean of rows":
        weights[::8] += 0.4
    else:
        weights[:, ::8] += 0.5
    assert esd(weights).order_z > 8


@pytest.mark.parametrize("weights", [np.full((64, 64), 0.3), np.zeros((64, 64)), np.ones((4, 64))], ids=str)
def test_nothing_is_said_where_entries_do_not_differ_or_vectors_are_few(weights):
    assert esd(weights).order_z is None


@pytest.mark.parametrize("turn", [False, True])
def test_vectors_of_next_to_nothing_are_counted_on_both_sides(turn):
    rng = np.random.default_rng(4)
    short, long = rng.normal(size=(40, 90)), rng.normal(size=(40, 90))
    short[[3, 7, 9]] *= 1e-5
    short[11] = 0
    long[:, :60] *= 1e-6  # 30 columns are left for 40 directions
    found = [esd(one.T.copy() if turn else one).weak_vectors for one in (short, long)]
    assert found == [4, 10]


def test_slices_are_pooled_by_the_most_ordered_of_them():
    rng = np.random.default_rng(5)
    plain, odd = rng.normal(size=(40, 60)), rng.normal(size=(40, 60))
    odd[:5] *= 3
    odd[6] = 0
    both = pool([esd(plain), esd(odd)])
    assert both.order_z == esd(odd).order_z
    assert both.weak_vectors == 1
