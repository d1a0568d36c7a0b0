"""The report of evaluations, their part of a model card, and the commands that write them."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest

from tailwise.core.errors import UsageError
from tailwise.models.evaluation.candidates import SIZES, side_by_side
from tailwise.models.evaluation.divergence import _summary
from tailwise.models.evaluation.evaluate import summary
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ModelSize, ScoreComparison, Scores
from tailwise.report.charts.chart import require_altair
from tailwise.report.evaluations.evaluation_page import report, views_of
from tailwise.report.evaluations.evaluation_tables import divergence_rows, markdown
from tailwise.report.evaluations.evaluation_view import EvaluationView, names_in
from tailwise.report.evaluations.model_card import check_card, with_part, write_card
from tailwise.report.evaluations.quality_by_size import figure_of
from tailwise.report.render import spec_of
from tailwise.report.theme import LIGHT

pytest.importorskip("altair")
require_altair()

HARD = np.random.default_rng(0).normal(3.0, 0.2, 24)


def made(name: str, extra: float, nbytes: int | None, text: str = "story.txt") -> Scores:
    losses = HARD + extra + np.random.default_rng(len(name)).normal(0, 0.01, 24)
    perplexity, interval = summary(losses)
    facts = None if nbytes is None else ModelSize(10**6, 10**6, 9, 9, nbytes)
    return Scores(name, perplexity, interval, tuple(map(float, losses)), 31, text, facts, settings={"text": text})


BASE = made("org/dense", 0.0, 2_000_000)


def pair(name: str, extra: float, nbytes: int | None) -> ScoreComparison:
    from dataclasses import replace

    rng = np.random.default_rng(1)
    tokens = [rng.gamma(1.0, extra + 1e-3, (24, 31)), rng.normal(0, 0.1, (24, 31)), np.ones((24, 31))]
    return replace(compare_scores(made(name, extra, nbytes), BASE), divergence=_summary(np.stack(tokens, -1), 0))


@pytest.fixture
def saved(tmp_path):
    for name, extra, nbytes in (("half", 0.1, 1_000_000), ("quarter", 0.5, 500_000)):
        pair(f"out/{name}", extra, nbytes).save(tmp_path / f"{name}.json")
    return tmp_path


@pytest.fixture
def call(saved, call):
    """A command line among the saved evaluations."""
    return call


def specs_in(page: str) -> dict:
    found = re.search(r'<script type="application/json" id="specs">(.*?)</script>', page, re.DOTALL)
    return json.loads(found[1])


def test_the_command_writes_a_page_with_a_chart_of_each_measure(call, saved):
    code, out, _ = call("report", "half.json", "quarter.json", "-o", "x.html")
    assert code == 0
    assert "x.html" in out
    page = (saved / "x.html").read_text(encoding="utf-8")
    specs = specs_in(page)
    assert set(specs) == {"perplexity-bytes-0", "kl-bytes-0"}
    rows = specs["perplexity-bytes-0"]["datasets"]["models"]
    assert [row["size"] for row in rows] == [0.5, 1, 2]
    assert [row["standing"] for row in rows] == ["front", "front", "base"]
    assert "No other is better and no larger" in page


def test_audits_and_evaluations_are_reported_apart(call, saved):
    (saved / "other.json").write_text("{}")
    code, _, err = call("report", "half.json", "other.json", "-o", "x.html")
    assert code == 2
    assert "is no evaluation" in err
    code, _, err = call("report", "half.json", "--base", "quarter.json", "-o", "x.html")
    assert code == 2
    assert "--base" in err


def test_one_evaluation_is_a_page_too():
    page = report({"x": made("alone", 0.1, 1000)})
    assert "Quality of alone" in page
    assert specs_in(page)


def test_names_from_files_are_text():
    page = report({"x": pair("<img src=x onerror=alert(1)>", 0.1, 1000)})
    assert "<img" not in page.split("<script>")[0]


def test_without_sizes_there_is_a_table_and_no_chart():
    page = report({"x": made("alone", 0.1, None)})
    assert "No chart" in page
    assert specs_in(page) == {}


def test_two_texts_are_two_parts():
    page = report({"a": made("one", 0.1, 1000), "b": made("one", 0.2, 1000, text="other.txt")})
    assert {key.rsplit("-", 1)[1] for key in specs_in(page)} == {"0", "1"}
    assert "other.txt" in page


def test_models_of_one_name_have_those_of_their_files():
    first, second = made("Llama", 0.1, 1000), made("Llama", 0.3, 900)
    (group,) = side_by_side({"rtn": first, "gptq": second})
    assert sorted(names_in(group)) == ["gptq", "rtn"]


@pytest.mark.parametrize("count", [1, 2, 40])
def test_every_number_of_models_is_drawn(count):
    found = {str(i): made(f"model {i}", 0.01 * (i + 1), 1000 + 7 * (i % 13)) for i in range(count)}
    (group,) = side_by_side(found)
    for view in views_of(group):
        spec = spec_of(figure_of(view), view)
        labels = [row["label"] for row in spec["datasets"]["models"]]
        assert len(labels) == count
        assert all(math.isfinite(label) for label in labels)
    light = EvaluationView(group=group, measure=group.measures[0], size=SIZES[0], palette=LIGHT)
    assert spec_of(figure_of(light), light)["config"]["background"] == LIGHT["paper"]


def test_extreme_numbers_are_drawn():
    from dataclasses import replace

    wide = {"a": made("a", 0.0, 1), "b": replace(made("b", 0.0, 10**12), perplexity=1e30, interval=(1e29, 1e31))}
    (group,) = side_by_side(wide)
    for view in views_of(group):
        assert spec_of(figure_of(view), view)["datasets"]["models"]


@pytest.mark.parametrize("interval", [(1.0, 1e308), (1e-320, 1e-310), (-1e308, 1e308), (0.0, 0.0), (1e307, 1e308)])
@pytest.mark.parametrize("perplexity", [25.0, 1e-320, 1e308])
def test_what_a_file_says_beyond_every_axis_is_left_out(perplexity, interval):
    from dataclasses import replace

    odd = replace(made("odd", 0.0, 7), perplexity=perplexity, interval=interval)
    (group,) = side_by_side({"odd": odd, "plain": made("plain", 0.1, 9)})
    for view in views_of(group):
        spec = spec_of(figure_of(view), view)
        assert "plain" in [row["name"] for row in spec["datasets"]["models"]]
        json.dumps(spec, allow_nan=False)


def test_the_block_of_divergence_has_the_ratio_and_the_percentiles():
    found = pair("half", 0.1, 1000)
    rows = {
        name.strip(): (value, around) for name, value, around in divergence_rows(found.divergence, found.perplexity)
    }
    value, around = rows["ln of the ratio of perplexities"]
    assert float(value) == pytest.approx(math.log(found.model.perplexity / BASE.perplexity), abs=1e-4)
    low, high = map(float, around.split(" to "))
    assert low < float(value) < high
    assert {"1 %, 99 %", "5 %, 95 %", "25 %, 75 %", "least, most", "median"} <= set(rows)


def test_the_part_of_a_card_has_everything():
    text = markdown(pair("half", 0.1, 1000))
    assert text.startswith("## Quality\n")
    for words in ("mean KL divergence", "same top token", "ln of the ratio", "24 windows of 32 tokens", "story.txt"):
        assert words in text
    assert "## Quality" in markdown(BASE)


def test_a_card_is_written_again_in_its_place(tmp_path):
    (tmp_path / "README.md").write_text("---\ntags: []\n---\n\n# Mine\n")
    write_card(pair("half", 0.1, 1000), tmp_path)
    first = (tmp_path / "README.md").read_text()
    assert first.startswith("---\ntags: []\n---\n\n# Mine\n\n<!-- tailwise")
    (tmp_path / "README.md").write_text(first + "\nMore.\n")
    write_card(pair("half", 0.9, 1000), tmp_path)
    second = (tmp_path / "README.md").read_text()
    assert second.count("## Quality") == 1
    assert second.endswith("\nMore.\n")
    assert second != first + "\nMore.\n"


def test_a_card_without_an_end_mark_loses_nothing():
    text = "# A\n<!-- tailwise evaluation -->\nmine, without an end\n"
    assert with_part(text, "new\n").startswith(text)


def test_a_model_without_a_folder_has_no_card(tmp_path):
    with pytest.raises(UsageError, match="a model card is written into a folder"):
        check_card("org/name")
    write_card(BASE, tmp_path)
    assert "## Quality" in (tmp_path / "README.md").read_text()
