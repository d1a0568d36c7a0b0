"""The control of a recovery, and the time that all of it may take."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny_models import learnable, plan_for, saved

from tailwise.compression.applying.apply import apply
from tailwise.compression.recovery.control import held_against
from tailwise.compression.recovery.recover import RecoverOptions, recover
from tailwise.compression.recovery.text_data import split_text
from tailwise.compression.recovery.time_budget import TimeBudget
from tailwise.compression.recovery.train_loop import FOLLOWED, Course, Trainer, Training
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.models.evaluation.loading import load_model
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import Scores

pytest.importorskip("transformers")

WINDOW = 16
FAST = {"window": WINDOW, "steps": 12, "lr": 1e-2, "batch": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    found = tmp_path_factory.mktemp("models")
    with quiet():
        folder = saved("llama", found / "dense")
        apply(plan_for(folder, sparsity=0.6), folder, found / "pruned")
    return found


@pytest.fixture(scope="module")
def controlled(place):
    options = RecoverOptions(**FAST, control=str(place / "dense"))
    return recover(place / "pruned", learnable(WINDOW), place / "out", options=options)


def trainer_of(folder):
    model = load_model(str(folder), dtype="float32").module
    split = split_text(learnable(WINDOW), None, WINDOW)
    return Trainer(model, dict(model.named_parameters()), {}, split.train, split.guard)


def test_who_follows_from_the_same_start_comes_to_the_same_state(place):
    first, second = trainer_of(place / "dense"), trainer_of(place / "dense")
    course = Course(12, 1e-2, 4, WINDOW)
    led = first.run(course)
    followed = second.follow(course, led)
    assert followed.curve == led.curve
    assert (followed.steps, followed.ended) == (led.steps, FOLLOWED)
    one, other = dict(first.model.named_parameters()), dict(second.model.named_parameters())
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_who_follows_ends_when_the_time_is_over(place):
    trainer = trainer_of(place / "dense")
    led = Training(rates=[1e-3] * 50, curve=[(0, 3.0), (50, 2.9)])
    found = trainer.follow(Course(50, 1e-3, 4, WINDOW), led, until=-1.0)
    assert (found.steps, found.ended) == (1, "the time was over")


def test_a_control_that_gets_no_better_is_left_as_it_was(place):
    trainer = trainer_of(place / "dense")
    before = {name: value.detach().clone() for name, value in trainer.model.named_parameters()}
    led = Training(rates=[1e30, 1e30], curve=[(0, 3.0), (2, 2.9)])
    found = trainer.follow(Course(2, 1e30, 4, WINDOW), led)
    assert found.best_step == 0
    assert all(torch.equal(before[name], value) for name, value in trainer.model.named_parameters())


def test_the_dense_model_was_trained_as_long_and_scored_on_the_same_windows(controlled, place):
    control = controlled.control
    assert control.training.steps == controlled.training.steps
    assert [step for step, _ in control.training.curve] == [step for step, _ in controlled.training.curve]
    assert control.comparison.base.digest == controlled.before.digest
    assert control.comparison.model.perplexity < control.comparison.base.perplexity
    assert control.model == str(place / "dense")


def test_what_is_adaptation_and_what_is_recovery_add_up(controlled):
    control, change = controlled.control, controlled.comparison.perplexity
    gained = -change.change
    adapted = -control.comparison.perplexity.change
    assert control.adaptation == pytest.approx(adapted / gained)
    assert control.recovered.change == pytest.approx(adapted - gained)
    assert control.gap_after.change - control.gap_before.change == pytest.approx(control.recovered.change)
    low, high = control.adaptation_interval
    assert low < control.adaptation < high


def test_the_control_is_told_in_json_and_in_the_card(controlled):
    kept = json.loads((controlled.output / "tailwise_recovery.json").read_text())
    assert kept["control"]["adaptation"] == controlled.control.adaptation
    assert kept["control"]["training"]["steps"] == controlled.training.steps
    card = (controlled.output / "README.md").read_text()
    assert "control, trained as long" in card
    assert "is adaptation to the text" in card


@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_has_a_control_with_an_adapter(place, tmp_path, merge):
    pytest.importorskip("peft")
    options = RecoverOptions(**FAST, method="lora", rank=4, merge=merge, control=str(place / "dense"))
    found = recover(place / "pruned", learnable(WINDOW), tmp_path / "out", options=options)
    assert found.control.training.steps == found.training.steps
    assert found.control.comparison.model.perplexity < found.control.comparison.base.perplexity


def scored(name: str, losses: np.ndarray) -> Scores:
    kept = tuple(float(loss) if math.isfinite(loss) else None for loss in losses)
    return Scores(name, 1.0, None, kept, 15, "same")


def test_against_itself_all_is_adaptation():
    rng = np.random.default_rng(0)
    before = rng.normal(3.0, 0.2, 20)
    pair = compare_scores(scored("after", before - rng.gamma(4, 0.05, 20)), scored("before", before))
    found = held_against(pair, pair, Training())
    assert (found.adaptation, found.recovered.change, found.recovered.verdict) == (1.0, 0.0, "no difference seen")
    assert found.adaptation_interval == pytest.approx((1.0, 1.0))


def test_a_loss_that_is_not_finite_is_told_as_such():
    before = np.linspace(2.0, 3.0, 20)
    pair = compare_scores(scored("after", before - 0.1), scored("before", before))
    broken = compare_scores(scored("x", np.where(before > 2.9, np.nan, before)), scored("y", before))
    found = held_against(pair, broken, Training())
    assert found.adaptation is None
    assert found.recovered.verdict == "not measured"
    assert "not told" in found.words()[0]


def test_a_control_that_does_not_fit_is_told_before_anything_is_trained(place, tmp_path, monkeypatch):
    def never(*_):
        raise AssertionError

    monkeypatch.setattr(Trainer, "run", never)
    with quiet():
        other = saved("bert", tmp_path / "bert")
    for wrong in (str(other), str(tmp_path / "nothing")):
        with pytest.raises(TailwiseError):
            recover(
                place / "pruned", learnable(WINDOW), tmp_path / "out", options=RecoverOptions(**FAST, control=wrong)
            )
    assert not (tmp_path / "out").exists()


# The time


class Time:
    """A clock that goes when it is told."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def time():
    return Time()


def test_what_comes_after_the_training_has_its_time(time):
    budget = TimeBudget(100.0, time)
    budget.reading, budget.scoring = 4.0, 10.0
    time.now += 20
    assert budget.for_training(written=False) == pytest.approx(70.0)
    assert budget.for_training(written=True) == pytest.approx(62.0)


def test_a_control_has_its_part_of_the_time(time):
    budget = TimeBudget(100.0, time)
    budget.reading, budget.scoring, budget.control = 0.0, 10.0, (2.0, 30.0)
    assert budget.weight == pytest.approx(0.25)
    assert budget.for_training(written=False) == pytest.approx((100 - 10 - 32) * 0.25 * 0.95)


def test_there_is_always_some_time_to_train(time):
    budget = TimeBudget(10.0, time)
    time.now += 50
    assert budget.for_training(written=True) > 0
    assert "was given 10 s" in budget.notes(5.0)[0]


def test_a_budget_that_was_kept_has_no_note(time):
    budget = TimeBudget(100.0, time)
    time.now += 114
    assert budget.notes(90.0) == ()


def test_windows_are_as_many_as_the_time_allows(time):
    budget = TimeBudget(100.0, time)
    assert budget.held_out(48, 0.01, 4, least=6) == 48
    assert budget.held_out(48, 1.0, 2, least=6) == 15
    assert budget.held_out(48, 60.0, 2, least=6) == 6
    assert budget.guard(16, 0.5, least=4) == 4


def test_fewer_windows_are_said(place, tmp_path, monkeypatch):
    monkeypatch.setattr(TimeBudget, "held_out", lambda *_, **__: 6)
    monkeypatch.setattr(TimeBudget, "guard", lambda *_, **__: 4)
    found = recover(place / "pruned", learnable(WINDOW, 200), tmp_path / "out", options=RecoverOptions(**FAST))
    assert len(found.after.losses) == 6
    assert any("quality is measured on 6 of 20 windows" in note for note in found.notes)


def test_a_budget_counts_from_where_it_is_told(place, tmp_path):
    import time as clock

    options = replace(RecoverOptions(**FAST), steps=10**6, seconds=5.0)
    try:
        found = recover(
            place / "pruned", learnable(WINDOW), tmp_path / "out", options=options, began=clock.monotonic() - 1000
        )
    except UsageError as error:  # one step may make nothing better
        assert "the time was over" in error.what  # noqa: PT017
    else:
        assert found.training.steps == 1
        assert any("was given 5 s" in note for note in found.notes)
