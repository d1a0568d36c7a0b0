"""`serve DIR` shows what lies there: histories, comparisons, precision studies, plans, and what cannot be read."""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
from fastapi.testclient import TestClient

import tailwise as tw
from tailwise.app.addresses import split
from tailwise.app.arriving import arriving
from tailwise.app.others import others
from tailwise.app.server import create_app
from tailwise.app.settings import AppSettings
from tailwise.app.workspace.workspace import Workspace
from tailwise.audits.precision.studying import study
from tailwise.history.point import Point
from tailwise.history.read import RunSummary
from tailwise.history.store import History
from tailwise.judging.compare.comparison_files import read_comparisons


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    first = {f"layers.{block}.mlp.up_proj.weight": rng.standard_normal((64, 96)) for block in range(3)}
    audit = tw.audit(first, use_cache=False)
    audit.save(tmp_path / "one.audit")
    (tmp_path / "moved.json").write_text(json.dumps(tw.compare(audit, audit).to_json(), indent=1))
    study(first, ["bf16", "int8"]).save(tmp_path / "study.json")
    (tmp_path / "broken.audit").write_bytes(b"PK\x03\x04 cut off")
    with History(tmp_path / "runs.db") as history:
        history.add_point(Point("r", 1, "cheap", 1.0, {}, {"loss": 1.0}))
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "other.db").write_bytes(b"no database")
    return tmp_path


def test_every_kind_is_a_row_that_says_what_it_is(folder):
    rows = {one.title: one for one in others(Workspace([folder]))}
    assert set(rows) == {"moved", "study", "broken", "runs"}
    assert {key: one.kind for key, one in rows.items()} == {
        "moved": "comparison", "study": "precision", "broken": "unreadable", "runs": "history",
    }  # fmt: skip
    assert "Nothing changed: all 3 matrices" in rows["moved"].says
    assert "3 matrices in bf16, int8" in rows["study"].says
    assert "tailwise serve --store" in rows["runs"].command
    assert "no audit" in rows["broken"].says


def test_they_stand_in_no_list_of_audits_and_plans(folder):
    workspace = Workspace([folder])
    assert [entry.title for entry in workspace.entries()] == ["one"]
    assert [entry.title for entry in workspace.entries("audit")] == ["one"]


def test_a_single_history_in_the_folder_is_the_store(folder):
    roots, store = split([str(folder)], None)
    assert roots == [str(folder)]
    assert store == str(folder / "runs.db")
    (one,) = [item for item in others(Workspace(roots, store=store)) if item.kind == "history"]
    assert (one.href, one.command) == ("/training", "")
    with History(folder / "second.db"):
        pass
    assert split([str(folder)], None)[1] is None


def test_a_history_that_is_named_by_a_relative_path_is_the_store_too(folder, monkeypatch):
    monkeypatch.chdir(folder.parent)
    (one,) = [item for item in others(Workspace([folder], store=f"{folder.name}/runs.db")) if item.kind == "history"]
    assert (one.href, one.command) == ("/training", "")


def test_the_list_is_chosen_by_the_words_that_it_shows(folder, browser_of):
    browser = browser_of([folder])
    listed = browser.get("/models", params={"sort": "worst"}).text
    word = next(word for word in ("unhealthy", "needs a look", "no verdict", "healthy") if f'">{word}</span>' in listed)
    assert f"<option>{word}</option>" in listed
    assert ">one</a>" in browser.get("/models", params={"verdict": word}).text
    for other in {"unhealthy", "needs a look", "no verdict", "healthy"} - {word}:
        assert "No audit fits" in browser.get("/models", params={"verdict": other}).text


def test_a_run_of_checkpoints_is_not_stalled_between_them():
    at = {"name": "r", "alarms": 0, "first_step": 0, "last_step": 9}
    hour = RunSummary(**at, points=0, audits=3, updated=time.time() - 3600)
    assert arriving(hour) == "audits of checkpoints, the latest 60 minutes ago"
    assert arriving(RunSummary(**at, points=9, audits=3, updated=time.time() - 3600)).startswith("stalled")
    assert arriving(RunSummary(**at, points=0, audits=3, updated=time.time() - 1e6)).startswith("finished")


def test_the_state_changes_when_a_file_comes(folder):
    workspace = Workspace([folder])
    before = workspace.state
    assert workspace.state == before
    tw.Audit.load(folder / "one.audit").save(folder / "two.audit")
    workspace.look_again()
    assert workspace.state != before


def test_the_example_is_found_and_listed_nowhere(folder, tmp_path_factory):
    place = tmp_path_factory.mktemp("package") / "example.audit"
    tw.Audit.load(folder / "one.audit").save(place)
    workspace = Workspace([tmp_path_factory.mktemp("empty")], example=place)
    assert workspace.entries() == []
    assert len(workspace.audit(workspace.example)) == 3


def test_a_file_that_goes_bad_is_a_row_all_the_same(folder):
    (folder / "study.json").write_text('{"kind": "precision study", "version": 99}')
    (one,) = [item for item in others(Workspace([folder])) if item.title == "study"]
    assert "precision study" in one.says or "newer" in one.says
    assert time.time() > one.changed


@pytest.fixture
def browser_of(tmp_path_factory):
    """A browser of a server over some folders."""
    return lambda roots: TestClient(
        create_app(Workspace(roots), AppSettings(state=tmp_path_factory.mktemp("state"))),
        base_url="http://127.0.0.1:8440",
    )


def test_comparisons_and_precision_studies_have_pages_in_words(folder, browser_of):
    browser = browser_of([folder])
    rows = {one.title: one for one in others(Workspace([folder]))}
    moved, study_ = browser.get(rows["moved"].href), browser.get(rows["study"].href)
    assert (moved.status_code, study_.status_code) == (200, 200)
    assert "Nothing changed: all 3 matrices" in moved.text
    assert "Lowest format that each layer tolerates" in study_.text
    assert "bf16" in study_.text
    whole = browser.get(rows["study"].href + "/report")
    assert whole.headers["content-disposition"].startswith("attachment")
    assert "Lowest format that each layer tolerates" in whole.text


@pytest.mark.parametrize("change", [
    {"layers": [{"name": 5}]}, {"layers": 3}, {"summary": []}, {"renamed": [["a"]]}, {"before": None},
    {"level": "much"}, {"added": "text"}, {"roles": [{}]},
])  # fmt: skip
def test_a_comparison_that_was_edited_is_one_error(folder, browser_of, change):
    document = json.loads((folder / "moved.json").read_text())
    (folder / "moved.json").write_text(json.dumps(document | change, indent=1))
    answer = browser_of([folder]).get("/files/" + next(
        entry.id for entry in Workspace([folder]).others() if entry.title == "moved"))  # fmt: skip
    assert answer.status_code in (400, 404, 422)
    assert "no comparison of audits" in answer.text


def test_an_audit_and_a_broken_file_have_no_page_of_files(folder, browser_of):
    browser, workspace = browser_of([folder]), Workspace([folder])
    for entry in (*workspace.entries("audit"), *workspace.entries("unreadable")):
        assert browser.get(f"/files/{entry.id}").status_code == 400


def test_what_compare_wrote_is_read_as_it_was(folder):
    rng = np.random.default_rng(1)
    after = tw.audit(
        {f"layers.{i}.mlp.up_proj.weight": rng.standard_normal((64, 96)) for i in range(2)}, use_cache=False
    )
    found = tw.compare(tw.Audit.load(folder / "one.audit"), after)
    (folder / "two.json").write_text(json.dumps(found.to_json()))
    (read,) = read_comparisons(folder / "two.json")
    assert read == found


def test_a_row_is_a_line_however_long_what_a_file_says(folder):
    (folder / "long.json").write_text(json.dumps({"after": "a", "layers": [], "before": "<" * 1_000_000}))
    rows = others(Workspace([folder]))
    assert any("signs)" in row.says for row in rows)
    assert sum(len(row.says) + len(row.command) for row in rows) < 5000
