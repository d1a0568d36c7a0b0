"""What files hold, and are called, breaks no page, no header and no spreadsheet."""

import csv
import io
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from tailwise.app import lists
from tailwise.app.rendering import moment
from tailwise.app.workspace import layers as table
from tailwise.app.workspace import links
from tailwise.compression.plans.plan import Plan

NAMES = [
    "模型",
    "ev\nil\r\nset-cookie: a=b",
    'q"uo;te',
    "{{7*7}}",
    "<b>x",
    "%0d%0a",
    "\u202egnp",
    "a" * 200,
    "=cmd|' C calc'!A0",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_may_be_called_anything(client, app, folder, name):
    (folder / f"{name}.audit").write_bytes((folder / "base.audit").read_bytes())
    found = next(entry for entry in app.state.context.workspace.look_again() if entry.title == name)
    for address in ("/models", links.model(found.id), "/compare", links.compare([found.id])):
        answer = client.get(address)
        assert answer.status_code == 200
        assert "<b>x" not in answer.text
        assert "49" not in answer.text.split("<title>")[1].split("</title>")[0]
    for kind in ("csv", "json", "parquet"):
        answer = client.get(links.layers(found.id, export=kind))
        assert answer.status_code == 200
        assert answer.headers["content-disposition"].isascii()
        assert answer.headers["content-disposition"].count('"') == 2


def test_a_file_whose_name_is_no_text_is_listed_and_tagged(client, app, folder):
    odd = Path(os.fsdecode(os.fsencode(folder) + b"/\xff.audit"))
    odd.write_bytes((folder / "base.audit").read_bytes())
    found = next(entry for entry in app.state.context.workspace.look_again() if entry.path == odd)
    assert client.put(f"{links.model(found.id)}/tags", data={"text": "odd"}).status_code == 200
    for address in ("/models", "/models?tag=odd", links.model(found.id), "/api/models"):
        assert client.get(address).status_code == 200
    assert found.id in client.get("/models?tag=odd").text


@pytest.mark.parametrize("when", [-1e18, 1e12, 1e18])
def test_a_file_may_be_from_any_time(client, app, folder, when):
    os.utime(folder / "base.audit", ns=(0, int(max(min(when, 9e9), -9e9)) * 10**9))
    app.state.context.workspace.look_again()
    assert client.get("/models").status_code == 200
    assert moment(when) == "–" or when == -1e18
    assert moment(float("nan")) == "–"


@pytest.fixture
def named(folder, audits, app):
    """Save an audit whose first layer has that name; its identity."""

    def save(name):
        layer = next(iter(audits[0]))
        row = replace(layer.row, name=name)
        audit = type(audits[0])([row], {name: replace(layer, row=row)}, audits[0].provenance)
        audit.save(folder / "named.audit")
        return next(entry.id for entry in app.state.context.workspace.look_again() if entry.title == "named")

    return save


@pytest.mark.parametrize("name", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_spreadsheet_computes_nothing(client, named, name):
    audit = named(name)
    text = client.get(links.layers(audit, export="csv")).content.decode()
    row = next(csv.DictReader(io.StringIO(text, newline="")))
    assert row["name"] == f"'{name}"
    float(row["alpha"])
    assert client.get(links.layers(audit, export="json")).json()[0]["name"] == name


def test_thousands_of_digits_are_sorted(client, named):
    assert client.get(links.layers(named("layers." + "9" * 5000), sort="name")).status_code == 200
    numbers = ["a.10", "a.9", "a.009", "a.x", "a." + "1" * 5000]
    assert sorted(numbers, key=table._natural) == ["a.9", "a.009", "a.10", "a." + "1" * 5000, "a.x"]


def test_a_list_by_verdict_takes_its_time_and_no_more(client, app, settings, monkeypatch):
    shutil.rmtree(settings.state / "overviews")
    app.state.context.overviews._known.clear()
    monkeypatch.setattr(lists, "_LONGER", -1.0)
    text = client.get("/models?verdict=good").text
    assert "3 audits were not read yet" in text
    monkeypatch.setattr(lists, "_LONGER", 60.0)
    assert "not read yet" not in client.get("/models?verdict=good").text


def test_plans_come_in_pages(client, app, folder, plan_text):
    for number in range(120):
        (folder / f"more-{number}.json").write_text(plan_text)
    app.state.context.workspace.look_again()
    first, second = client.get("/plans").text, client.get("/plans?page=2").text
    assert first.count("<tr>") == 101
    assert second.count("<tr>") == 22
    assert "page=2" in first


def test_tags_of_other_folders_are_not_offered(client, ids, settings):
    client.put(f"/models/{ids['base']}/tags", data={"text": "own"})
    kept = json.loads((settings.state / "tags.json").read_text())
    (settings.state / "tags.json").write_text(json.dumps({**kept, "/elsewhere/x.audit": ["foreign"]}))
    text = client.get("/models").text
    assert "own" in text
    assert "foreign" not in text


def test_a_problem_comes_alone_for_htmx(client, ids):
    headers = {"hx-request": "true", "hx-target": "tags"}
    answer = client.put(f"/models/{ids['base']}/tags", data={"text": "<b>"}, headers=headers)
    assert answer.status_code == 400
    assert answer.headers["hx-retarget"] == "#problem"
    assert "</html>" not in answer.text
    assert 'class="finding error"' in answer.text


def test_one_audit_that_cannot_be_read_is_one_row(client, app, folder, audits):
    layer = next(iter(audits[0]))
    row = replace(layer.row, metrics={**layer.row.metrics, "alpha": float("nan")})
    type(audits[0])([row], {row.name: replace(layer, row=row)}, audits[0].provenance).save(folder / "nan.audit")
    entries = app.state.context.workspace.look_again()
    assert client.get("/models").status_code == 200
    answer = client.get("/api/models")
    assert answer.status_code == 200
    for entry in entries:
        if entry.kind == "audit":
            app.state.context.overviews.of(entry)
    assert client.get("/models").status_code == 200
    found = {item["title"]: item for item in client.get("/api/models").json()}
    assert found["nan"]["verdict"] == "not readable"
    assert "not finite" in found["nan"]["trouble"]
    assert found["base"]["layers"] > 0
    assert client.get(links.model(found["nan"]["id"])).status_code == 422


def test_a_store_on_a_server_that_goes_away_amid_is_told_and_found_again(folder, tmp_path, postgres):
    from fastapi.testclient import TestClient

    from tailwise.app.server import create_app
    from tailwise.app.settings import AppSettings
    from tailwise.app.workspace.workspace import Workspace
    from tailwise.history.point import Point
    from tailwise.history.store import History

    url = postgres.new_store()
    with History(url, create=True) as history:
        history.add_all([Point(run="one", step=0, cadence="full", time=1.7e9, scalars={"loss": 1.0}, layers={})])
    workspace = Workspace([folder], store=url)
    app = create_app(workspace, AppSettings(state=tmp_path / "state2"))
    with TestClient(app, base_url="http://127.0.0.1", raise_server_exceptions=False) as client:
        assert "one" in client.get("/training").text
        postgres.stop()
        try:
            away = client.get("/training")
            assert away.status_code in (200, 503)
            assert "password" not in away.text
            assert client.get("/models").status_code == 200
        finally:
            postgres.start()
        workspace._refused = None
        assert client.get("/training").status_code == 200
        assert "one" in client.get("/training").text


@pytest.mark.parametrize("trouble", [KeyError("x"), RecursionError(), AssertionError(), ZeroDivisionError()], ids=repr)
def test_whatever_one_plan_raises_the_lists_show_the_others(client, app, folder, plan_text, monkeypatch, trouble):
    for name in ("good", "odd"):
        (folder / f"{name}.json").write_text(plan_text)
    load = Plan.load

    def loading(path):
        if Path(path).stem == "odd":
            raise trouble
        return load(path)

    monkeypatch.setattr(Plan, "load", loading)
    app.state.context.workspace.look_again()
    for address in ("/plans", "/models"):
        answer = client.get(address)
        assert answer.status_code == 200
        assert f"cannot be read ({type(trouble).__name__})" in answer.text
        assert "good" in answer.text
