"""Alarms on the loss of every step and on held-out losses."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from alarm_points import codes, loss, only, point, sick

from tailwise.history.point import Point
from tailwise.training.alarms import Alarms


def test_a_spike_of_the_loss_is_of_the_whole_model():
    (found,) = only(sick({}, scalars=lambda step: {"loss": 9.0 if step == 250 else loss(step)}), "TW702")
    assert (found.step, found.since, found.layers) == (250, 250, ())


def test_a_loss_next_to_nothing_is_memorising():
    (found,) = only(sick({}, scalars={"loss": 0.01}), "TW711")
    assert found.severity == "note"


def test_a_held_out_loss_that_rises_while_training_goes_on_is_over_fitting():
    def held(step):
        return {"eval_loss": loss(step) if step < 150 else 4.0 + 0.02 * (step - 150)}

    points = [point(step, scalars=held(step)) for step in range(0, 300, 10)]
    (found,) = only(points, "TW712")
    assert 150 < found.step < 250


def test_held_out_losses_need_not_come_with_a_training_loss():
    points = []
    for step in range(0, 600, 10):
        both = point(step)
        held = {"eval_loss": loss(step) if step < 150 else 4.0 + 0.02 * (step - 150)}
        points.append(replace(both, scalars=held if step % 20 else {"loss": loss(step)}))
    assert len(only(points, "TW712")) == 1


def test_a_loss_that_is_not_finite_is_an_error():
    (found,) = only(sick({}, scalars={"loss": math.nan}), "TW701")
    assert found.layers == ()


@pytest.mark.parametrize("seed", range(20))
def test_a_held_out_loss_that_scatters_is_not_over_fitting(seed):
    draw = random.Random(seed)
    flat = [
        point(step, scalars={"eval_loss": 2.0 * (1 + draw.gauss(0, 0.03)), "loss": 1.9}) for step in range(0, 600, 10)
    ]
    falling = [
        replace(one, scalars={"loss": 1.9, "eval_loss": (1 + math.exp(-one.step / 300)) * (1 + draw.gauss(0, 0.03))})
        for one in flat
    ]
    assert codes(flat) == set()
    assert codes(falling) == set()


def test_one_batch_next_to_zero_is_no_spike_and_five_in_a_row_are():
    alarms = Alarms()
    draw = random.Random(0)
    losses = [2.3 * math.exp(-step / 20) + 0.004 * draw.random() for step in range(300)]
    losses[250] = 0.2
    assert alarms.see_losses("r", range(1, 301), losses) == []
    (found,) = alarms.see_losses("r", range(301, 311), [0.9 + 0.1 * draw.random() for _ in range(10)])
    assert (found.rule, found.since) == ("TW702", 301)
    assert 301 <= found.step <= 305


def test_a_loss_that_rises_for_good_is_seen_while_the_run_still_learns():
    draw = random.Random(1)
    losses = [2.0 - 0.002 * step + draw.gauss(0, 0.02) for step in range(200)] + [2.3] * 10
    (found,) = Alarms().see_losses("r", range(1, 211), losses)
    assert (found.rule, found.since) == ("TW702", 201)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_one_alarm_of_the_step_of_the_first(bad):
    found = Alarms().see_losses("r", range(1, 101), [1.0] * 60 + [bad] * 40)
    assert [(alarm.rule, alarm.step, alarm.severity) for alarm in found] == [("TW701", 61, "error")]


def test_memorising_is_seen_where_the_held_out_loss_stands_still():
    def both(step):
        return {"loss": 2.0 - 0.005 * step, "eval_loss": 2.0 - 0.005 * min(step, 60)}

    (found,) = only([point(step, scalars=both(step)) for step in range(0, 300, 10)], "TW711")
    assert "does not fall any more" in found.title


def test_a_classifier_that_has_learned_does_not_memorise():
    def both(step):
        return {"loss": 2.3 * math.exp(-step / 30), "eval_loss": 0.1 + 2.2 * math.exp(-step / 30)}

    assert codes([point(step, scalars=both(step)) for step in range(0, 300, 10)]) == set()


@pytest.mark.parametrize("seed", range(10))
def test_a_loss_that_stays_up_is_seen_though_batches_differ_by_as_much(seed):
    """Labels at random in fine-tuning: a rise of a fifth, where one batch in three differs by as much."""
    draw = random.Random(seed)
    losses = [4.0 + draw.gauss(0, 0.35) for _ in range(180)]
    assert Alarms().see_losses("r", range(1, 181), losses) == []
    alarms = Alarms()
    found = alarms.see_losses("r", range(1, 261), losses + [4.8 + draw.gauss(0, 0.35) for _ in range(80)])
    assert [(alarm.rule, alarm.severity) for alarm in found] == [("TW702", "warning")]
    assert 180 < found[0].step <= 220


def test_a_loss_that_scatters_at_one_level_for_long_is_no_spike():
    draw = random.Random(0)
    losses = [1.5 + draw.gauss(0, 0.3) for _ in range(20_000)]
    assert Alarms().see_losses("r", range(len(losses)), losses) == []


def test_a_run_that_went_back_is_not_held_against_what_it_left():
    alarms = Alarms()
    alarms.see_losses("r", range(100), [1.0 + 0.01 * (step % 3) for step in range(100)])
    assert alarms.see_losses("r", range(4, 100), [1.0 + 0.01 * (step % 3) for step in range(4, 100)]) == []


def evaluated(train, held, steps=600, every=20):
    """A run with its loss every ten steps, and a held-out loss every 20, as points of their own."""
    points = []
    for step in range(0, steps, 10):
        points.append(point(step, scalars={"loss": train(step)}))
        if step % every == 0:
            points.append(Point("r", step, "full", float(step), {}, {"eval_loss": held(step)}))
    return points


def test_a_training_loss_that_falls_alone_is_memorising_before_the_held_out_loss_rises():
    """An adapter on eight examples: it learns little, and nothing of it holds elsewhere."""
    (found,) = only(evaluated(lambda step: 2.0 - 0.001 * step, lambda step: 1.9 - 0.0002 * min(step, 100)), "TW711")
    assert found.severity == "note"
    assert "down by" in found.title


@pytest.mark.parametrize("seed", range(10))
def test_a_training_loss_that_falls_by_less_than_it_scatters_does_not_memorise(seed):
    draw = random.Random(seed)
    train = {step: 2.0 - 0.0001 * step + draw.gauss(0, 0.1) for step in range(0, 600, 10)}
    assert codes(evaluated(train.__getitem__, lambda step: 1.9), rules="TW711") == set()


def test_a_held_out_loss_that_follows_is_learning():
    assert codes(evaluated(lambda step: 2.0 - 0.001 * step, lambda step: 2.2 - 0.0005 * step)) == set()
