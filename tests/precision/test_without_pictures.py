"""`tailwise precision` where the report extra is not installed: the study and its tables, and one line that says so."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from tailwise.cli import precision
from tailwise.cli.main import app


@pytest.fixture
def model(tmp_path):
    rng = np.random.default_rng(0)
    path = tmp_path / "m.npz"
    np.savez(path, **{f"layers.{n}.mlp.up_proj.weight": rng.standard_normal((64, 60)) for n in range(2)})
    return path


def test_without_the_report_extra_the_study_is_written_without_pictures(model, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "missing", lambda *packages: list(packages))
    output = tmp_path / "study"
    done = CliRunner().invoke(app, ["precision", str(model), "--precisions", "int8", "-o", str(output), "--json"])
    assert done.exit_code == 0, done.output
    assert 'pip install "tailwise[report]"' in done.stderr
    assert json.loads(done.stdout)
    written = {path.name for path in output.rglob("*") if path.is_file()}
    assert "study.json" in written
    assert any(name.endswith(".csv") for name in written)
    assert not any(name.endswith((".png", ".svg", ".html")) for name in written)


def test_where_nothing_is_drawn_nothing_is_said_to_be_missing(model, tmp_path, monkeypatch):
    monkeypatch.setattr(precision, "missing", lambda *packages: list(packages))
    args = ["precision", str(model), "--precisions", "int8", "-o", str(tmp_path / "s"), "--no-plots", "--basic"]
    done = CliRunner().invoke(app, args)
    assert done.exit_code == 0, done.output
    assert "pip install" not in done.output
