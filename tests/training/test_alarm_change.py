"""Where a change began, on series whose change is known."""

from __future__ import annotations

import random

import pytest

from tailwise.training.alarm_change import began
from tailwise.training.alarm_watch import HISTORY, Track, change


def track(values, every=10):
    made = Track()
    for index, value in enumerate(values):
        made.add(index * every, value)
    return made


def noise(seed, count, sd=0.02):
    draw = random.Random(seed)
    return [draw.gauss(0, sd) for _ in range(count)]


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("at", [24, 27, 29])
def test_a_jump_is_found_to_the_point(seed, at):
    values = [(1.0 if i < at else 2.0) + e for i, e in enumerate(noise(seed, 30))]
    assert began(track(values)) == at * 10


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("at", [24, 26, 28])
def test_a_turn_is_found_to_the_point(seed, at):
    values = [0.01 * i + max(0, i - at) * 0.3 + e for i, e in enumerate(noise(seed, 30))]
    assert began(track(values), "turn") == at * 10


def test_a_turn_is_found_in_a_curve_that_levels_off():
    values = [2.0 + 0.8**i - (0.7 if i == 29 else 0.0) for i in range(30)]
    assert began(track(values), "turn") == 280


def test_nothing_began_in_a_constant_or_a_short_series():
    assert began(track([1.0] * 30)) is None
    assert began(track([1.0, 2.0, 3.0])) is None


def test_very_large_and_very_small_numbers_do_not_overflow():
    for scale in (1e300, 1e-300):
        assert began(track([scale * (1.0 if i < 25 else 2.0) for i in range(30)])) == 250


def test_a_track_keeps_the_last_points_and_goes_back_with_the_run():
    made = track(range(100))
    assert len(made) == HISTORY
    assert made.last == 99
    assert made.ago(3) == 96
    made.rewind(970)
    made.add(970, -1.0)
    assert list(made.steps)[-2:] == [960, 970]
    assert made.ago(10**6) == made.values[0]


def test_a_change_is_held_against_earlier_ones_of_the_same_length():
    steady = [0.1 * i + e for i, e in enumerate(noise(1, 30, 0.01))]
    assert abs(change(track(steady), 0.01, 3).z) < 4
    sudden = change(track([*steady[:-1], steady[-1] + 2]), 0.01, 3)
    assert sudden.z > 30
    assert sudden.size == pytest.approx(2.3, abs=0.1)
    assert change(track(steady[:8]), 0.01, 3) is None
