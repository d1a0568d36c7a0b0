"""Scores as values: JSON and back, and two of them compared."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ModelSize, ScoreComparison, Scores, Speed, TaskScore


def made(name: str, losses, **more) -> Scores:
    given = [float(loss) for loss in losses]
    finite = all(map(math.isfinite, given))
    kept = tuple(loss if math.isfinite(loss) else None for loss in given)
    perplexity = math.exp(sum(given) / len(given)) if finite and given else None
    return Scores(name, perplexity, None, kept, 511, digest="one", **more)


@pytest.fixture
def base():
    return made("base", np.random.default_rng(0).normal(3, 0.5, 60))


def shifted(base, change, noise=0.02, seed=1):
    moved = np.array(base.losses) + change + np.random.default_rng(seed).normal(0, noise, len(base.losses))
    return made("model", moved)


def test_scores_come_back_from_json_as_they_were(tmp_path):
    scores = Scores(
        model="m",
        perplexity=12.5,
        interval=(11.0, 13.0),
        losses=(2.5, None, 2.6),
        tokens_per_window=511,
        digest="d",
        facts=ModelSize(100, 60, 80, 40, 200),
        speed=Speed(100.0, None, 512, 32, 5, 1, "cpu", "float32"),
        tasks=(TaskScore("t", "acc", 0.5, 0.1, 4, True, (1.0, 0.0, 1.0, 0.0)),),
        settings={"window": 512},
        versions={"torch": "2"},
        notes=("a note",),
    )
    assert Scores.load(scores.save(tmp_path / "a.json")) == scores


def test_a_comparison_comes_back_from_json_as_it_was(tmp_path, base):
    found = compare_scores(shifted(base, 0.1), base)
    assert ScoreComparison.load(found.save(tmp_path / "a.json")) == found


@pytest.mark.parametrize(
    ("change", "beginning"),
    [(0.1, "model is worse than base on this text: perplexity × 1.1"),
     (-0.1, "model is not hurt but better than base on this text: perplexity × 0.9"),
     (0.0, "No difference between model and base was seen on this text: perplexity × ")],
)  # fmt: skip
def test_a_comparison_comes_to_one_sentence(base, change, beginning):
    found = compare_scores(shifted(base, change), base)
    assert found.conclusion.startswith(beginning)
    low, high = (math.exp(end) for end in found.perplexity.interval)
    form = ".4f" if change == 0 else ".4g"  # near 1, as many digits as tell a factor from its bounds
    assert f"× {found.ratio:{form}} (95 %: {low:{form}} to {high:{form}})" in found.conclusion


def test_no_sentence_claims_what_was_not_measured(base):
    few = replace(base, losses=base.losses[:2])
    assert compare_scores(few, few).conclusion == "No verdict on base against base: too few windows."
    broken = made("model", [math.nan] * len(base.losses))
    assert compare_scores(broken, base).conclusion == "model is worse than base on this text: its loss is not finite."
    assert compare_scores(broken, broken).conclusion == "No verdict on model against model: not measured."
    task = TaskScore("t", "acc", 0.5, 0.01, 400, True)
    better = replace(base, losses=(), tasks=(replace(task, value=0.9),))
    plain = replace(base, losses=(), tasks=(task,))
    assert compare_scores(better, plain).conclusion == "base against base, of what was measured: 1 better."
    assert ScoreComparison(base, base).conclusion == ""


def test_sparsity_is_in_the_json():
    data = Scores("m", facts=ModelSize(100, 60, 80, 20, 200)).to_json()
    assert data["facts"]["sparsity"] == pytest.approx(0.4)
    assert data["facts"]["block_sparsity"] == pytest.approx(0.75)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "scores", "format": 1}', '{"kind": "audit", "format": 1}',
                                  '{"kind": "scores", "format": 99, "model": "m"}'])  # fmt: skip
def test_what_holds_no_scores_is_unreadable(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UnreadableError):
        Scores.load(path)


def test_scores_that_are_not_there_are_unreadable(tmp_path):
    with pytest.raises(UnreadableError, match=r"a\.json"):
        Scores.load(tmp_path / "a.json")


def test_scores_are_read_and_compared_without_torch():
    code = (
        "import sys, tailwise.models.evaluation.scores, tailwise.models.evaluation.score_pairs;"
        "import tailwise.cli.evaluate_command;"
        "assert not {'torch', 'transformers', 'lm_eval', 'datasets'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_small_real_loss_is_found(base):
    change = compare_scores(shifted(base, 0.01), base).perplexity
    assert change.verdict == "worse"
    assert change.interval[0] <= 0.01 <= change.interval[1]


def test_a_small_real_gain_is_found(base):
    found = compare_scores(shifted(base, -0.02), base)
    assert found.perplexity.verdict == "better"
    assert found.ratio == pytest.approx(math.exp(found.perplexity.change))


def test_noise_is_no_difference(base):
    verdicts = [compare_scores(shifted(base, 0.0, seed=seed), base).perplexity.verdict for seed in range(5)]
    assert verdicts.count("no difference seen") >= 4


def test_a_model_against_itself_is_no_difference(base):
    change = compare_scores(base, base).perplexity
    assert (change.change, change.p, change.verdict) == (0.0, 1.0, "no difference seen")


def test_a_model_whose_loss_is_not_finite_is_worse(base):
    broken = made("model", [*base.losses[:-1], math.nan])
    assert compare_scores(broken, base).perplexity.verdict == "worse"
    assert compare_scores(base, broken).perplexity.verdict == "not measured"


def test_five_windows_show_nothing(base):
    few = made("base", base.losses[:5])
    found = compare_scores(shifted(few, 1.0), few)
    assert found.perplexity.verdict == "too few windows"
    assert "only 5 windows" in found.notes[0]


def test_scores_of_other_windows_are_not_paired(base):
    with pytest.raises(UsageError, match="different windows"):
        compare_scores(replace(shifted(base, 0.1), digest="two"), base)


def test_scores_with_nothing_in_common_are_not_compared(base):
    with pytest.raises(UsageError, match="no scores of the same kind"):
        compare_scores(base, Scores("other", facts=ModelSize(1, 1, 0, 0, 4)))


def task(values=(), value=0.5, stderr=None, better=True):
    return Scores("m", tasks=(TaskScore("t", "acc", value, stderr, 100, better, tuple(map(float, values))),))


def test_tasks_are_compared_document_by_document():
    right = np.tile([1, 0], 100)
    change = compare_scores(task([1] * 30 + list(right[30:])), task(right)).tasks[0]
    assert (change.name, change.n, change.verdict) == ("t acc", 200, "better")


def test_a_metric_that_is_better_low_gets_worse_when_it_rises():
    zeros, ones = [0.0] * 40, [0.0, 1.0] * 20
    assert compare_scores(task(ones, better=False), task(zeros, better=False)).tasks[0].verdict == "worse"


def test_without_documents_the_standard_errors_decide():
    assert compare_scores(task(value=0.7, stderr=0.02), task(value=0.6, stderr=0.02)).tasks[0].verdict == "better"
    assert compare_scores(task(value=0.7, stderr=0.2), task(value=0.6, stderr=0.2)).tasks[0].verdict == (
        "no difference seen"
    )
    assert compare_scores(task(value=0.7), task(value=0.6)).tasks[0].verdict == "not measured"


def test_json_never_holds_nan(base):
    broken = made("model", [*base.losses[:-1], math.inf])
    json.dumps(compare_scores(broken, base).to_json(), allow_nan=False)


def test_no_difference_says_how_large_a_one_cannot_be_excluded(base):
    found = compare_scores(shifted(base, 0.0, seed=1), base)
    low, high = found.perplexity.interval
    assert low < 0 < high
    ends = f"a rise of up to {100 * math.expm1(high):.2g} % or a fall of up to {-100 * math.expm1(low):.2g} % cannot be"
    assert ends in found.conclusion
