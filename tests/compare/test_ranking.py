"""Orders, correlations and their intervals."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console
from scipy.stats import kendalltau, spearmanr
from typer.testing import CliRunner

import tailwise as tw
from tailwise.cli.main import app
from tailwise.judging.compare.correlation import correlation
from tailwise.judging.compare.model_scores import read_scores
from tailwise.judging.compare.ranking import short_names
from tailwise.judging.compare.summary import model_numbers
from tailwise.report.comparison_page import ranking_terminal


@pytest.fixture(scope="module")
def family(make):
    """Five models whose tails grow heavier."""
    found = []
    for index, exponent in enumerate((0.3, 0.5, 0.7, 0.9, 1.1)):
        weights = {f"model.layers.{b}.mlp.up_proj.weight": make.heavy(b, exponent=exponent) for b in range(3)}
        audit = make.audited(weights)
        facts = audit.provenance.__class__(**{**vars(audit.provenance), "model": f"run/step-{index}"})
        found.append(tw.Audit(list(audit.rows), {layer.row.name: layer for layer in audit}, facts))
    return found


def test_models_are_ordered_by_the_number(family):
    found = tw.rank(family[::-1], by="alpha")
    values = [model.values["mean_alpha"] for model in found.models]
    assert values == sorted(values)
    assert found.by == "mean_alpha"
    assert "accuracy" in found.direction
    assert tw.rank(family, by="stable_rank").direction.endswith("no source says which is better")
    assert found.models[0].values["layers"] == 3
    means = [np.mean([layer.alpha for layer in audit]) for audit in family]
    assert sorted(means) == pytest.approx(values)


@pytest.mark.parametrize(
    ("by", "first", "says"),
    [
        ("alpha_2_6", "smallest", "layers_2_6"),
        ("effective_rank", "smallest", "if accuracy holds"),
        ("num_traps", "smallest", "fewer is better"),
        ("share_2_4", "largest", "the larger share is the better"),
        ("layers_2_6", "largest", "more layers"),
        ("one_minus_rd", "smallest", "sources disagree"),
    ],
)
def test_the_order_is_that_of_what_is_said_of_the_number(family, by, first, says):
    found = tw.rank(family, by=by)
    assert found.direction.startswith(f"{first} first")
    assert says in found.direction
    values = [value for model in found.models if (value := model.values[found.by]) is not None]
    assert values == sorted(values, reverse=first == "largest")


def test_a_mean_within_a_band_says_how_many_layers_it_stands_on(family):
    for audit in family:
        numbers = model_numbers(audit)
        inside = [layer.alpha for layer in audit if 2 <= layer.alpha <= 6]
        assert numbers["layers_2_6"] == len(inside)
        assert (numbers["mean_alpha_2_6"] is None) == (not inside)


def test_scores_are_correlated_as_scipy_has_it(family):
    scores = dict(zip([f"step-{i}" for i in range(5)], (0.4, 0.2, 0.5, 0.8, 0.7), strict=True))
    found = tw.rank(family, scores=scores)
    values = [model.values["mean_alpha"] for model in found.models]
    given = [model.score for model in found.models]
    both = {item.kind: item for item in found.correlations if item.metric == "mean_alpha"}
    assert both["kendall"].value == pytest.approx(kendalltau(values, given).statistic)
    assert both["kendall"].p == pytest.approx(kendalltau(values, given).pvalue)
    assert both["spearman"].value == pytest.approx(spearmanr(values, given).statistic)
    for item in both.values():
        assert -1 <= item.low <= item.value <= item.high <= 1
    json.dumps(found.to_json(), allow_nan=False)


def test_few_models_have_no_interval_and_a_note(family):
    found = tw.rank(family[:3], scores={"step-0": 1.0, "step-1": 2.0, "step-2": 3.0})
    assert all(item.low is None for item in found.correlations)
    assert any("too few" in note for note in found.notes)


def test_an_empty_score_leaves_a_model_out_and_idle_scores_are_said(family):
    scores = {f"step-{i}": float(i) for i in range(4)} | {"step-4": None, "other": 1.0}
    found = tw.rank(family, scores=scores)
    assert max(item.n for item in found.correlations) == 4
    assert any("other" in note for note in found.notes)


def test_a_model_without_a_score_is_a_usage_error_with_near_names(family):
    with pytest.raises(tw.UsageError, match="did you mean") as raised:
        tw.rank(family, scores={f"step_{i}": 1.0 for i in range(5)})
    assert "step_0" in str(raised.value)
    with pytest.raises(tw.UsageError, match="several scores"):
        tw.rank(family[:2], scores={"step-0": 1.0, "run/step-0": 2.0, "step-1": 1.0})


def test_wrong_requests(family):
    with pytest.raises(tw.UsageError, match="two models"):
        tw.rank(family[:1])
    with pytest.raises(tw.UsageError, match="did you mean alpha"):
        tw.rank(family, by="alhpa")


def test_mixed_fits_are_noted(family, make):
    other = make.audited({"model.layers.0.mlp.up_proj.weight": make.heavy(1)}, estimator="mid")
    assert any("fitted differently" in note for note in tw.rank([family[0], other]).notes)


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
@pytest.mark.parametrize("n", [5, 9, 40])
def test_intervals_cover_the_association(kind, n):
    """95 % of the intervals hold the family's own value; perfect order of five still leaves room."""
    rng = np.random.default_rng([n, len(kind)])
    strength = 0.7
    true = 2 / np.pi * np.arcsin(strength) if kind == "kendall" else 6 / np.pi * np.arcsin(strength / 2)
    held = 0
    for _ in range(120):
        x = rng.standard_normal(n)
        y = strength * x + np.sqrt(1 - strength**2) * rng.standard_normal(n)
        found = correlation("m", kind, list(x), list(y))
        held += found.low <= true <= found.high
    assert held >= 107
    perfect = correlation("m", kind, list(range(5)), list(range(5)))
    assert perfect.value == pytest.approx(1)
    assert perfect.low < 0.4
    assert perfect.high == 1


def test_a_constant_has_no_correlation():
    assert correlation("m", "kendall", [1.0, 1.0, 1.0], [1.0, 2.0, 3.0]).value is None


def test_names_are_as_short_as_they_can_be():
    assert short_names(["a/b/x", "a/c/x", "y"]) == ["b/x", "c/x", "y"]
    assert short_names(["x", "x"]) == ["x", "x"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name,score\na,1\n", "model,score"),
        ("model,score\na,1\na,2\n", "twice"),
        ("model,score\na,good\n", "line 2: 'good' is not a number"),
        ("model,score\n,1\n", "no name"),
        ("", "columns"),
    ],
)
def test_wrong_scores_are_usage_errors(tmp_path, text, message):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(tw.UsageError, match=message):
        read_scores(path)


@pytest.mark.parametrize("text", [f'model,score\n"{"a" * 200_000}",1\n', f'"{"a" * 200_000}",score\n', "\x00"])
def test_a_table_of_scores_that_is_none_is_one_message(tmp_path, text):
    path = tmp_path / "s.csv"
    path.write_text(text)
    with pytest.raises(tw.TailwiseError, match=r"s\.csv"):
        read_scores(path)


def test_scores_are_read_with_their_gaps(tmp_path):
    path = tmp_path / "s.csv"
    path.write_text("\ufeffmodel, score ,note\na,1.5,x\nb,,\n", encoding="utf-8")
    assert read_scores(path) == {"a": 1.5, "b": None}
    with pytest.raises(tw.UnreadableError):
        read_scores(tmp_path / "none.csv")


@pytest.fixture
def one_file(family):
    """Three audits of one path, as checkpoints that were written over one another."""
    facts = family[0].provenance
    return [tw.Audit(list(one.rows), {layer.row.name: layer for layer in one}, facts) for one in family[:3]]


def test_audits_of_one_file_are_scored_by_their_own_names(one_file):
    names, scores = ["runs/a.audit", "runs/b.audit", "c.audit"], {"a": 3.0, "b.audit": 2.0, "c": 1.0}
    found = tw.rank(one_file, by="stable_rank", scores=scores, names=names)
    assert sorted((model.name, model.score) for model in found.models) == [("a", 3.0), ("b", 2.0), ("c", 1.0)]
    assert {model.model for model in found.models} == {"run/step-0"}
    assert set(found.stability.first) == {"a", "b", "c"}
    with pytest.raises(tw.UsageError, match="no score for 'a'"):
        tw.rank(one_file, scores={"run/step-0": 1.0}, names=names)


def test_audits_of_one_file_without_names_are_numbered(one_file):
    assert {model.name for model in tw.rank(one_file).models} == {"step-0", "step-0 (2)", "step-0 (3)"}
    with pytest.raises(tw.UsageError, match="2 names for 3 audits"):
        tw.rank(one_file, names=["a", "b"])


def test_the_command_scores_audits_of_one_file(one_file, tmp_path):
    files = [tmp_path / f"{name}.audit" for name in "abc"]
    for audit, file in zip(one_file, files, strict=True):
        audit.save(file)
    scores = tmp_path / "scores.csv"
    scores.write_text("model,score\na,1\nb,2\nc.audit,3\n")
    done = CliRunner().invoke(app, ["rank", *map(str, files), "--scores", str(scores), "--json"])
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert sorted((model["name"], model["score"]) for model in found["models"]) == [("a", 1), ("b", 2), ("c", 3)]


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_narrow_table_has_names_and_whole_numbers_and_says_what_it_leaves_out(family, width):
    ranking = tw.rank(family, scores={f"step-{i}": float(i) for i in range(5)})
    console = Console(width=width, record=True, file=io.StringIO())
    console.print(ranking_terminal(ranking))
    lines = console.export_text().splitlines()
    for model in ranking.models:
        line = next(line for line in lines if line.startswith(model.name))
        shown = round(model.values["mean_alpha_weighted"], 3) + 0.0  # what rounds to zero has no sign
        assert f"{shown:.3f}" in line.split()
        assert f"{model.score:.4f}" in line.split()
    assert any("wider terminal" in line for line in lines) == (width < 200)


def test_models_without_a_trusted_fit_are_counted_and_stand_last(family, make):
    flat = make.audited({"model.layers.0.mlp.up_proj.weight": np.eye(80, 64)})
    found = tw.rank([flat, family[0]], by="alpha")
    assert [model.values["trusted_fits"] for model in found.models] == [3.0, 0.0]
    notes = " ".join(found.notes)
    assert f"mean_alpha: not known of {found.models[1].name}" in notes
    assert f"{found.models[1].name} 1 of 1" in notes
    assert any("no model has one" in note for note in tw.rank([flat, flat], by="alpha").notes)


def test_a_lower_bound_is_advised_only_where_it_takes_in_more(make):
    noise = np.random.default_rng(0)
    large = [make.audited({"up.weight": noise.standard_normal((96, 64))}) for _ in range(2)]
    small = [make.audited({"up.weight": make.heavy(seed, 60, 45, exponent=0.7)}) for seed in range(2)]
    notes = [" ".join(tw.rank(audits, by="alpha").notes) for audits in (large, small)]
    assert all("not trusted" in said for said in notes)
    assert ["min_evals" in said or "min-evals" in said for said in notes] == [False, True]
