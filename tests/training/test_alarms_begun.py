"""Alarms on layers that have only begun to learn, as small weights have not, and on losses near zero."""

from __future__ import annotations

import math
import random

import pytest
from alarm_points import LAYERS, point

from tailwise.training.alarms import Alarms

ONE = LAYERS[2]


def codes(points, **named):
    return {alarm.rule for alarm in Alarms(**named).replay(points)}


def resting(since):
    """alpha_hill of all layers falls, that of one until a step."""

    def moving(step):
        still = 8 - 0.01 * since + 1e-4 * (step % 20)
        one = {"alpha_hill": still, "update_ratio": 1e-4} if step >= since else {"alpha_hill": 8 - 0.01 * step}
        return {"*": {"alpha_hill": 8 - 0.01 * step}, ONE: one}

    return [point(step, moving(step)) for step in range(0, 300, 10)]


def test_a_layer_whose_alpha_stands_still_is_a_note():
    (found,) = Alarms().replay(resting(since=100))
    assert (found.rule, found.layers, found.severity) == ("TW708", (ONE,), "note")
    assert 100 <= found.since <= found.step <= 150


def test_a_layer_that_has_not_begun_has_not_stalled():
    """As queries and keys under SGD, whose gradients are next to nothing while attention looks everywhere."""
    assert codes(resting(since=0)) == set()


def waking(gain, *, name=LAYERS[2], power=1.15):
    """A run of small weights: one layer stays as it was drawn until step 200, and then one direction of it grows."""
    layers = tuple(dict.fromkeys((*LAYERS[:5], name)))

    def begun(step):
        grown = max(gain * power ** max((step - 200) / 5, 0), gain)
        frobenius = math.sqrt(13 * gain**2 + grown**2)
        entropy = 0.3 + 0.5 * math.log(grown / gain)
        return {name: {"spectral_norm": grown, "frobenius": frobenius, "stable_rank": (frobenius / grown) ** 2,
                       "singular_entropy": entropy, "update_ratio": 1e-5 if step < 200 else 0.02}}  # fmt: skip

    return [point(step, begun(step), layers=layers) for step in range(0, 240, 10)]


@pytest.mark.parametrize(("gain", "expected"), [
    (0.25, {("TW703", "warning"), ("TW704", "warning")}),
    (2.5, {("TW703", "error"), ("TW704", "warning"), ("TW706", "warning"), ("TW707", "warning")}),
])  # fmt: skip
def test_growth_of_what_makes_its_input_smaller_is_milder(gain, expected):
    found = {(alarm.rule, alarm.severity) for alarm in Alarms().replay(waking(gain))}
    assert found == expected


@pytest.mark.parametrize(("gain", "ratio", "expected"), [
    (0.2, 0.3, set()), (0.2, 0.5, {"TW704"}), (1.0, 0.1, {"TW704"}), (5.0, 0.1, {"TW704"}), (5.0, 0.07, set()),
])  # fmt: skip
def test_updates_of_small_weights_are_held_against_a_gain_of_one(gain, ratio, expected):
    """From the first step on: a head that is drawn small moves by a third of itself a step while all is well."""
    small = {ONE: {"spectral_norm": gain, "frobenius": 2.3 * gain, "update_ratio": ratio}}
    assert codes([point(step, small) for step in range(0, 300, 10)]) == expected


def test_a_layer_that_wakes_up_makes_no_jump_until_it_moves_by_something():
    def waking_up(ratio):
        return [point(step, {ONE: {"update_ratio": ratio if step >= 200 else ratio / 10}})
                for step in range(0, 240, 10)]  # fmt: skip

    assert codes(waking_up(0.003)) == set()
    assert codes(waking_up(0.008)) == {"TW704"}


@pytest.mark.parametrize("first", [10.0, 0.9])
def test_one_direction_is_left_only_where_there_were_more_of_learned_weights(first):
    """Small noise has a high stable rank, which the first thing that is learned takes away."""

    def layers(step):
        learned = step >= 100
        return {ONE: {"spectral_norm": 1.6 if learned else first / 4, "stable_rank": 1.4 if learned else 13.0}}

    found = codes([point(step, layers(step)) for step in range(0, 300, 10)], rules=["TW706"])
    assert found == ({"TW706"} if first > 4 else set())


@pytest.mark.parametrize(("spikes", "expected"), [(31.0, set()), (20.0, {"TW709"})])
def test_a_fit_to_most_of_a_spectrum_is_not_one_of_a_heavy_tail(spikes, expected):
    fit = {"alpha": 1.3, "num_pl_spikes": spikes, "matrix_rank": 48.0}
    points = [point(step, {ONE: fit if step >= 200 else {}}) for step in range(0, 300, 10)]
    assert codes(points) == expected


@pytest.mark.parametrize(("height", "expected"), [(0.4, 0), (0.8, 1)])
def test_one_example_of_a_batch_that_is_wholly_wrong_is_no_spike(height, expected):
    draw = random.Random(0)
    losses = [2.3 * math.exp(-step / 20) + 0.004 * draw.random() for step in range(300)]
    losses[250] = height
    assert len(Alarms().see_losses("r", range(1, 301), losses)) == expected


def test_the_first_loss_is_that_of_the_first_step_and_not_of_the_first_point():
    """A net that has learned most of its task before the first point: 0.6 there, and 0.2 on held-out data."""
    alarms = Alarms("TW711")
    losses = [0.001 + 2.3 * math.exp(-step / 7) for step in range(300)]
    found = alarms.see_losses("r", range(1, 301), losses)
    for step in range(10, 300, 10):
        found += alarms.see(point(step, scalars={"loss": losses[step - 1], "eval_loss": 0.2}))
    assert found == []
