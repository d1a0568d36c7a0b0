"""Evaluations side by side: what stands on the front, what is not told from it, and what is read."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from made_scores import WINDOWS, against, made

from tailwise.core.errors import UnreadableError
from tailwise.models.evaluation import candidates
from tailwise.models.evaluation.candidates import (
    BEHIND,
    FRONT,
    NEAR,
    NOWHERE,
    SIZES,
    is_evaluation,
    read_evaluation,
    side_by_side,
)
from tailwise.models.evaluation.scores import Scores, TaskScore

BASE = made("dense", 0.0, 1000)


def of_names(group, values):
    return dict(zip((one.scores.model for one in group.candidates), values, strict=True))


def test_the_front_holds_what_no_other_is_better_and_smaller_than():
    models = [made("half", 0.1, 500, seed=2), made("bad", 0.5, 600, seed=3), made("tiny", 1.0, 100, seed=4)]
    (group,) = side_by_side({one.model: against(one, BASE, 0.1) for one in models})
    perplexity, kl = group.measures
    found = of_names(group, group.standings(perplexity, SIZES[0]))
    assert found == {"dense": FRONT, "half": FRONT, "bad": BEHIND, "tiny": FRONT}
    assert of_names(group, group.standings(kl, SIZES[0]))["dense"] == NOWHERE


def test_what_the_windows_do_not_tell_from_a_better_one_is_not_behind_it():
    better, same = made("better", 0.1, 500, noise=0.3, seed=2), made("same", 0.1005, 500, noise=0.3, seed=3)
    if better.perplexity > same.perplexity:
        better, same = same, better
    (group,) = side_by_side({"a": better, "b": same})
    found = of_names(group, group.standings(group.measures[0], SIZES[0]))
    assert found == {better.model: FRONT, same.model: NEAR}


def test_two_models_are_held_against_each_other_once_and_no_longer_than_there_is_room(monkeypatch):
    asked = []
    whole = candidates.paired
    monkeypatch.setattr(candidates, "paired", lambda *given, **named: asked.append(1) or whole(*given, **named))
    (group,) = side_by_side({f"{k}": made(f"{k}", 0.1 + k / 1e4, 500 + k, noise=0.3, seed=k) for k in range(6)})
    measure = group.measures[0]
    first = group.standings(measure, SIZES[0])
    once = len(asked)
    assert once > 0
    assert group.standings(measure, SIZES[0]) == first
    assert len(asked) == once
    monkeypatch.setattr(candidates, "_MOST_WINDOWS", -1)
    (without,) = side_by_side({f"{k}": made(f"{k}", 0.1 + k / 1e4, 500 + k, noise=0.3, seed=k) for k in range(6)})
    assert set(without.standings(measure, SIZES[0])) == {FRONT, BEHIND}
    assert len(asked) == once


def test_a_base_stands_there_once_and_first_and_others_by_size():
    models = [made("small", 0.4, 100, seed=2), made("large", 0.1, 900, seed=3)]
    (group,) = side_by_side({one.model: against(one, BASE, 0.1) for one in models} | {"alone": BASE})
    assert [one.scores.model for one in group.candidates] == ["dense", "large", "small"]
    assert [one.is_base for one in group.candidates] == [True, False, False]


def test_what_was_scored_alone_is_held_against_the_base_of_the_others():
    alone = made("alone", 0.3, 300, seed=7)
    (group,) = side_by_side({"a": against(made("half", 0.1, 500, seed=2), BASE, 0.1), "b": alone})
    change = next(one.change for one in group.candidates if one.scores.model == "alone")
    assert change.change == pytest.approx(np.mean(np.subtract(alone.losses, BASE.losses)))
    assert change.verdict == "worse"


def test_other_windows_are_another_text():
    other = replace(made("other", 0.1, 500), digest="another text")
    assert [len(group.candidates) for group in side_by_side({"a": BASE, "b": other})] == [1, 1]


def test_a_model_that_is_stored_dequantized_is_as_large_as_its_plan_says():
    (group,) = side_by_side({"a": made("a", 0.1, 1000, planned=250), "b": BASE})
    assert of_names(group, [one.nbytes for one in group.candidates]) == {"a": 250, "dense": 1000}


def test_sizes_that_do_not_differ_are_no_axis():
    (group,) = side_by_side({"a": BASE, "b": made("b", 0.5, 1000, nonzero=300)})
    assert [size.key for size in group.sizes] == ["nonzero"]
    (group,) = side_by_side({"a": BASE, "b": made("b", 0.5, 1000)})
    assert [size.key for size in group.sizes] == ["bytes"]


def test_tasks_are_measures_and_more_of_accuracy_is_better():
    def asked(name, value, nbytes):
        task = TaskScore("endings", "acc", value, 0.01, 100, True, ())
        return replace(made(name, 0.0, nbytes), losses=(), perplexity=None, interval=None, digest="", tasks=(task,))

    (group,) = side_by_side({"a": asked("good", 0.9, 500), "b": asked("poor", 0.2, 700)})
    (measure,) = group.measures
    assert of_names(group, group.standings(measure, SIZES[0])) == {"good": FRONT, "poor": BEHIND}


def test_a_loss_that_is_not_finite_stands_nowhere():
    broken = replace(made("broken", 0.1, 500), perplexity=None, interval=None, losses=(None,) * WINDOWS)
    (group,) = side_by_side({"a": against(broken, BASE, 0.1), "b": BASE})
    assert of_names(group, group.standings(group.measures[0], SIZES[0]))["broken"] == NOWHERE


def test_what_was_saved_is_read_again(tmp_path):
    pair = against(made("half", 0.1, 500, planned=200), BASE, 0.1)
    pair.save(tmp_path / "pair.json")
    BASE.save(tmp_path / "one.json")
    assert read_evaluation(tmp_path / "pair.json") == pair
    assert read_evaluation(tmp_path / "one.json") == BASE
    assert is_evaluation(tmp_path / "pair.json")
    assert is_evaluation(tmp_path / "one.json")


def test_files_of_before_are_read(tmp_path):
    pair = against(made("half", 0.1, 500), BASE, 0.1)
    document = pair.to_json()
    del document["divergence"]["kl_by_window"], document["model"]["facts"]["planned_nbytes"]
    (tmp_path / "old.json").write_text(json.dumps(document))
    found = read_evaluation(tmp_path / "old.json")
    assert found.divergence.kl == pair.divergence.kl
    (group,) = side_by_side({"old": found})
    assert of_names(group, group.standings(group.measures[1], SIZES[0]))["half"] == FRONT


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"kind": "scores"}', '{"kind": "precision study"}'])
def test_anything_else_is_one_error(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UnreadableError, match="scores"):
        read_evaluation(tmp_path / "x.json")


def test_a_file_that_is_not_there_is_told(tmp_path):
    assert not is_evaluation(tmp_path / "x.json")
    with pytest.raises(UnreadableError, match="could not be read"):
        read_evaluation(tmp_path / "x.json")


def test_an_empty_evaluation_has_no_measure():
    (group,) = side_by_side({"a": Scores("nothing")})
    assert group.measures == ()


def test_bars_are_of_the_change_against_the_base_which_has_none():
    half = made("half", 0.1, 500, seed=2)
    (group,) = side_by_side({"a": against(half, BASE, 0.1)})
    base, other = (group.measures[0].interval(one) for one in group.candidates)
    assert base is None
    assert other[0] < half.perplexity < other[1]
    assert other[1] - other[0] < half.interval[1] - half.interval[0]
    (alone,) = side_by_side({"a": half})
    assert alone.measures[0].interval(alone.candidates[0]) == half.interval
