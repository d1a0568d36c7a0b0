"""`tailwise diagnose` as people type it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from made_audits import NOISE, audit_of, changed, healthy_rows, name
from typer.testing import CliRunner

from tailwise.cli.main import app
from tailwise.core.errors import UsageError


@pytest.fixture
def audits(tmp_path: Path) -> tuple[str, str]:
    """A healthy audit, and one with a matrix of noise."""
    sick = changed(healthy_rows(), name("attn_q", 2), **NOISE)
    made = {"healthy": healthy_rows(), "sick": sick}
    healthy, ill = (str(audit_of(rows).save(tmp_path / f"{stem}.audit")) for stem, rows in made.items())
    return healthy, ill


def call(*arguments: object):
    return CliRunner().invoke(app, ["diagnose", *map(str, arguments)], env={"NO_COLOR": "1", "COLUMNS": "200"})


def test_findings_come_first_with_causes_remedies_and_numbers(audits):
    ended = call(audits[1])
    assert ended.exit_code == 0
    for part in (
        "WARNING  TW201 1 of 24 matrices looks like noise",
        "causes",
        "remedies",
        "9.50 ± 2.40",
        "z 0.5",
        name("attn_q", 2),
    ):
        assert part in ended.output
    assert ended.output.index("TW201") < ended.output.index("TW501")


def test_several_audits(audits):
    output = call(*audits).output
    assert "nothing found" in output
    assert "1 warning" in output


def test_json_is_an_object_for_one_and_a_list_for_several(audits):
    one = json.loads(call(audits[1], "--json").stdout)
    assert one["findings"][0]["code"] == "TW201"
    assert [len(found["findings"]) for found in json.loads(call(*audits, "--json").stdout)] == [0, 2]


def test_files(audits, tmp_path):
    paths = [tmp_path / "new" / "d.json", tmp_path / "d.md"]
    assert call(audits[1], "-o", paths[0], "-o", paths[1]).exit_code == 0
    assert json.loads(paths[0].read_text())["findings"][0]["code"] == "TW201"
    assert "## WARNING TW201 1 of 24 matrices looks like noise" in paths[1].read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d.md", "healthy.audit", "new", "sick.audit"]


@pytest.mark.parametrize(("level", "which", "code"), [("warning", 1, 1), ("error", 1, 0), ("warning", 0, 0)])
def test_fail_on(audits, level, which, code):
    assert call(audits[which], "--fail-on", level).exit_code == code


def test_muting_and_thresholds(audits, tmp_path):
    assert "TW201" not in call(audits[1], "--mute", "TW201,TW5xx", "--json").stdout.partition('"muted"')[0]
    assert "nothing found" in call(audits[1], "--mute", "TW201:a{1,2}ttn|q_proj", "--mute", "TW501").output
    toml = tmp_path / "t.toml"
    toml.write_text("noise_z = 0.1\n")
    assert "TW201 not trained" not in call(audits[1], "--thresholds", toml).output


@pytest.mark.parametrize("wrong", [["--mute", "TW999"], ["-o", "x.csv"], ["--thresholds", "{toml}"]])
def test_wrong_requests(audits, tmp_path, wrong):
    (tmp_path / "t.toml").write_text("nois_z = 1\n")
    ended = call(audits[0], *(part.format(toml=tmp_path / "t.toml") for part in wrong))
    assert isinstance(ended.exception, UsageError)


def test_history_judges_the_last_against_the_others(audits):
    assert "2 notes" not in call(*audits, "--history").output
    assert json.loads(call(*audits, "--history", "--json").stdout)["findings"][0]["code"] == "TW201"


def test_evidence_is_cut_and_says_so(tmp_path):
    rows = healthy_rows()
    for which in rows:
        rows = changed(rows, which, **NOISE)
    path = audit_of(rows).save(tmp_path / "a.audit")
    assert "… and 22 more" in call(path, "--rows", 2).output
    assert "more; --rows" not in call(path, "--rows", 0).output


def test_diagnosing_needs_no_torch(audits):
    code = f"import sys, tailwise as tw; tw.diagnose(tw.Audit.load({audits[1]!r})); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-W", "error", "-c", code], check=False).returncode == 0
