"""`/evaluations`: what `evaluate -o x.json` left in the folder, quality against size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from tailwise.app.lists import others
from tailwise.app.workspace import links
from tailwise.app.workspace.workspace import Workspace
from tailwise.models.evaluation.evaluate import summary
from tailwise.models.evaluation.score_pairs import compare_scores
from tailwise.models.evaluation.scores import ModelSize, Scores


def made(name, extra, nbytes):
    losses = np.random.default_rng(0).normal(3.0, 0.2, 20) + extra
    perplexity, interval = summary(losses)
    return Scores(name, perplexity, interval, tuple(map(float, losses)), 31, "d", ModelSize(9, 9, 9, 9, nbytes),
                  settings={"text": "<i>story</i>"})  # fmt: skip


@pytest.fixture
def scored(folder):
    """Two models against a base, one of which tries to be markup, and a file that is cut off."""
    base = made("dense", 0.0, 1000)
    for name, extra, nbytes in (("half", 0.1, 500), ("<script>alert(2)</script>", 0.4, 250)):
        compare_scores(made(name, extra, nbytes), base).save(folder / f"scores-{nbytes}.json")
    (folder / "cut.json").write_text((folder / "scores-500.json").read_text()[:-200])
    return folder


def test_it_shows_every_text_with_its_models(scored, client):
    page = client.get("/evaluations").text
    assert "&lt;i&gt;story&lt;/i&gt;" in page
    assert "half" in page
    assert "&lt;script&gt;alert(2)" in page or "script&gt;" in page
    assert "<script>alert" not in page
    assert "cut:" in page
    assert "Perplexity by bytes" in page


def test_its_charts_have_their_data(scored, client):
    spec = client.get(f"/api{links.evaluation_chart(0, 'perplexity', 'bytes')}").json()
    rows = spec["datasets"]["models"]
    assert [row["size"] for row in rows] == [0.25, 0.5, 1]
    assert {row["standing"] for row in rows} == {"base", "front"}
    answer = client.get(f"/api{links.evaluation_chart(0, 'kl', 'bytes')}")
    assert answer.status_code == 400
    assert client.get(f"/api{links.evaluation_chart(7, 'perplexity', 'bytes')}").status_code == 400


def test_a_row_of_the_list_leads_there(scored):
    (row,) = [one for one in others(Workspace([scored])) if one.title == "scores-500"]
    assert (row.kind, row.href) == ("evaluation", "/evaluations")
    assert "half against dense: perplexity" in row.says
    assert "worse" in row.says


def test_a_file_that_comes_is_shown_at_once(scored, client, app):
    client.get("/evaluations")
    base = made("dense", 0.0, 1000)
    compare_scores(replace(made("later", 0.2, 400)), base).save(scored / "later.json")
    app.state.context.workspace.look_again()
    assert "later" in client.get("/evaluations").text


def test_without_any_it_says_how_to_get_one(client):
    assert "tailwise evaluate" in client.get("/evaluations").text


def test_an_evaluation_is_no_plan_and_no_audit(scored):
    kinds = {entry.title: entry.kind for entry in Workspace([scored]).others()}
    assert kinds["scores-250"] == kinds["cut"] == "evaluation"
    document = json.loads((scored / "scores-250.json").read_text())
    assert document["kind"] == "score comparison"
