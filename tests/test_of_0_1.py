"""What version 0.1 wrote is read: an audit, and a store of a training run. The files were written by it."""

import sqlite3
from pathlib import Path

import pytest
from typer.testing import CliRunner

import tailwise as tw
from tailwise.cli.main import app

DATA = Path(__file__).parent / "data"
MEASURED = {"model.layers.0.mlp.up_proj", "model.layers.1.mlp.up_proj", "conv", "flat"}


@pytest.fixture
def audit(tmp_path):
    (tmp_path / "old.audit").write_bytes((DATA / "audit_of_0_1.zip").read_bytes())
    return tmp_path / "old.audit"


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript((DATA / "history_of_0_1.sql").read_text(encoding="utf-8"))
    connection.close()
    return path


def test_an_audit_has_its_rows_spectra_and_numbers(audit, tmp_path):
    found = tw.Audit.load(audit)
    assert {layer.row.name for layer in found} == MEASURED
    assert {row.status for row in found.unmeasured} == {"NOT_A_MATRIX", "NOT_FINITE"}
    layer = found["model.layers.0.mlp.up_proj"]
    assert layer.alpha > 1
    assert layer.windows is not None
    assert len(layer.permuted) == 1
    assert found["conv"].row.slices == 9
    assert tw.Audit.load(found.save(tmp_path / "again.audit")).rows == found.rows


@pytest.mark.parametrize("command", [["show"], ["diagnose"], ["compare", "old.audit"]])
def test_commands_take_it(audit, command, monkeypatch):
    monkeypatch.chdir(audit.parent)
    done = CliRunner().invoke(app, [command[0], "old.audit", *command[1:]])
    assert done.exit_code == 0, done.output


def test_a_store_has_its_points_alarms_and_audits_and_takes_more(store):
    pytest.importorskip("sqlalchemy")
    from tailwise.history.point import Point
    from tailwise.history.store import History

    with History(store) as history:
        assert [point.step for point in history.points("one")] == [0, 10, 20]
        assert [alarm.rule for alarm in history.alarms("one")] == ["TW702"]
        assert [item.step for item in history.audits("one")] == [30]
        assert {row.name for row in history.audit_rows("one", 30) if row.measured} == MEASURED
        history.add_all([Point(run="one", step=40, cadence="full", time=1.8e9, scalars={"loss": 1.0}, layers={})])
        assert [point.step for point in history.points("one")] == [0, 10, 20, 40]
