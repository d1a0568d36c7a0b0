"""A package that adds to every registry: the modules of docs/extending.md as installed, found by its commands."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tailwise as tw
from tailwise.compression.plans.plan import Plan
from tailwise.judging.diagnosis.rule import rule
from tailwise.training.alarm_rule import alarm_rule

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "extending.md").read_text(encoding="utf-8")
#: Section of the page → group, and what its run must show.
SECTIONS = {
    "Metrics": ("tailwise.metrics", "Largest eigenvalue over the median one"),
    "Rules": ("tailwise.rules", "XT101 large spread"),
    "Estimators": ("tailwise.estimators", "third.audit"),
    "Number formats": ("tailwise.number_formats", "5-bit integer"),
    "Charts": ("tailwise.charts", "written to spread.json"),
    "Operators": ("tailwise.operators", "written to left.json"),
    "Allocators": ("tailwise.allocators", "blend, same"),
    "Assigners": ("tailwise.assigners", "written to fewest.json"),
    "Exporters": ("tailwise.exporters", "written to same.tsv"),
    "Alarms": ("tailwise.alarms", "['XT701']"),
    "Functions of the assistant": ("tailwise.assistant_functions", "layers.0.mlp.up_proj"),
}


def groups_in_code() -> set[str]:
    """The group of every registry, from the source."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        found |= set(re.findall(r"= Registry\(\s*\"[^\"]+\", \"(tailwise\.\w+)\"", path.read_text(encoding="utf-8")))
    return found


def blocks(section: str) -> list[tuple[str, str]]:
    """Language and text of the blocks of a section."""
    text = PAGE.partition(f"\n## {section}\n")[2].partition("\n## ")[0]
    return re.findall(r"```(\w+)\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a model, and beside it one for `sys.path` with the package and what an installer writes of it."""
    pytest.importorskip("altair")
    folder = tmp_path_factory.mktemp("extending")
    package, facts = folder / "site" / "tailwise_extras", folder / "site" / "tailwise_extras-1.0.dist-info"
    package.mkdir(parents=True)
    facts.mkdir()
    (package / "__init__.py").touch()
    points = []
    for section, (group, _) in SECTIONS.items():
        module = group.rpartition(".")[2]
        (package / f"{module}.py").write_text(blocks(section)[0][1], encoding="utf-8")
        points.append(f"[{group}]\nextras = tailwise_extras.{module}\n")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: tailwise-extras\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("\n".join(points))
    from safetensors.numpy import save_file

    work = folder / "work"
    (work / "model").mkdir(parents=True)
    rng = np.random.default_rng(0)
    weights = {f"layers.{i}.mlp.{n}_proj.weight": rng.standard_normal((64, 96 if n == "up" else 64), np.float32)
               for i in range(3) for n in ("up", "gate")}  # fmt: skip
    save_file(weights, work / "model" / "model.safetensors")
    return folder


RUN = """
import contextlib, io, json, os, sys
sys.path.insert(0, sys.argv[1])
from typer.testing import CliRunner
from tailwise.cli.main import app

said = {}
for section, found in json.load(sys.stdin).items():
    said[section] = ""
    for language, text in found:
        if language == "python":
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown):
                exec(text, {"__name__": "notebook"})
            said[section] += shown.getvalue()
            continue
        for line in text.strip().splitlines():
            done = CliRunner().invoke(app, line.split()[1:], env={"COLUMNS": "200", "NO_COLOR": "1"})
            if done.exit_code != 0:
                sys.exit(f"{line}: {done.output}{done.exception!r}")
            said[section] += done.output
json.dump(said, sys.stdout)
"""


@pytest.fixture(scope="module")
def said(place):
    """What the commands of each section print, all in one process."""
    asked = {section: blocks(section)[1:] for section in SECTIONS}
    done = subprocess.run([sys.executable, "-P", "-c", RUN, str(place / "site")], input=json.dumps(asked), text=True,
                          capture_output=True, check=False, cwd=place / "work")  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.parametrize("section", SECTIONS)
def test_what_a_package_brings_is_found(said, section):
    assert SECTIONS[section][1] in said[section]


def test_what_was_written_holds_what_the_package_says(said, place):
    work = place / "work"
    audit = tw.Audit.load(work / "model.audit")
    assert len(audit) == 6
    for layer in audit:
        values = layer.spectrum.eigenvalues
        assert layer.row.metrics["spread"] == pytest.approx(values[-1] / values[len(values) // 2])
    spreads = json.loads((work / "spread.json").read_text())["datasets"].values()
    assert sum(len(rows) for rows in spreads) == 6
    assert json.loads((work / "left.json").read_text())["operator"] == "left_columns"
    assert {item.sparsity for item in Plan.load(work / "same.json")} == {0.5}
    assert {line.split("\t")[1] for line in (work / "same.tsv").read_text().splitlines()} == {"0.5"}
    assert {item.format for item in Plan.load(work / "fewest.json")} == {"int4"}
    third = tw.Audit.load(work / "third.audit")
    for layer in third:
        largest = layer.spectrum.eigenvalues[2 * layer.spectrum.m // 3 :]
        assert layer.alpha == pytest.approx(1 + len(largest) / np.log(largest / largest[0]).sum())
    assert len((work / "formats" / "precision_summary_statistics.csv").read_text().splitlines()) > 1


def test_the_page_names_every_group():
    assert {group for group, _ in SECTIONS.values()} == groups_in_code()
    assert set(re.findall(r"(?m)^\| `(tailwise\.\w+)`", PAGE)) == groups_in_code()


@pytest.mark.parametrize(
    ("decorator", "given", "known"),
    [(rule, "note", "info, warning, error"), (alarm_rule, "info", "note, warning, error")],
)
def test_a_severity_that_there_is_not_is_told_at_once(decorator, given, known):
    facts = {"title": "t", "strength": "theory", "causes": (), "remedies": (), "references": ()}
    with pytest.raises(TypeError, match=f"the severity of XT999 is '{given}'; it is one of {known}"):
        decorator("XT999", severity=given, **facts)
