"""The command: exit codes, and the files for machines and for people."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

GOOD, BAD = "alpha in [0, 1000]", "stable_rank < 0"


def gate(path: Path, *texts: str) -> Path:
    path.write_text("expect = [\n" + "".join(f'  "{text}",\n' for text in texts) + "]\n")
    return path


@pytest.mark.parametrize(
    ("texts", "code"),
    [((GOOD,), 0), ((GOOD, BAD), 1), (("num_traps < 1",), 1), (("alpha",), 2), (("delta.alpha < 1",), 2)],
)
def test_exit_codes(call, folder, tmp_path, texts, code):
    got, _, err = call("check", folder / "sound.audit", "--expect", gate(tmp_path / "e.toml", *texts))
    assert got == code
    assert "Traceback" not in err


def test_wrong_requests_and_unreadable_files(call, folder, tmp_path):
    audit, expect = folder / "sound.audit", gate(tmp_path / "e.toml", GOOD)
    (tmp_path / "junk.audit").write_bytes(b"junk")
    for code, message, arguments in (
        (2, "nothing to expect", [audit]),
        (2, "suffix", [audit, "--expect", expect, "--junit", "x.txt"]),
        (2, "suffix", [audit, "--expect", expect, "--badge", "x.png"]),
        (2, "belongs to --init", [audit, "--expect", expect, "-o", "x.toml"]),
        (2, "one of the two", [audit, "--init", "--expect", expect]),
        (2, "suffix", [audit, "--init", "-o", "x.json"]),
        (2, "", []),
        (3, "no such audit", [tmp_path / "none.audit", "--expect", expect]),
        (3, "readable audit", [tmp_path / "junk.audit", "--expect", expect]),
        (3, "could not be read", [audit, "--expect", tmp_path / "none.toml"]),
        (3, "no such audit", [audit, "--expect", expect, "--baseline", tmp_path / "none.audit"]),
        (3, "none.safetensors", [tmp_path / "none.safetensors", "--expect", expect]),
    ):
        got, _, err = call("check", *arguments)
        assert (got, message in err) == (code, True), (arguments, err)


def test_a_model_is_audited_first(call, folder, tmp_path):
    code, out, _ = call("check", folder / "sound.safetensors", "--expect", gate(tmp_path / "e.toml", GOOD))
    assert code == 0
    assert "1 of 1 expectations hold" in out


def test_init_writes_what_the_baseline_meets(call, folder, tmp_path):
    sound, made = tmp_path / "gate" / "sound.audit", tmp_path / "gate" / "e.toml"
    sound.parent.mkdir()
    shutil.copy(folder / "sound.audit", sound)
    code, out, _ = call("check", "--init", sound, "-o", made)
    assert code == 0
    assert "written to" in out
    assert "--baseline" not in out
    assert call("check", folder / "sound.audit", "--expect", made)[0] == 0
    assert call("check", folder / "lighter.audit", "--expect", made)[0] == 1
    code, out, _ = call("check", "--init", folder / "sound.safetensors")
    assert code == 0
    assert out.startswith("# Made by")
    assert "baseline =" not in out


def test_init_names_no_baseline_that_lies_elsewhere(call, folder, tmp_path):
    sound, made = folder / "sound.audit", tmp_path / "gate" / "e.toml"
    _, out, _ = call("check", "--init", sound, "-o", made)
    assert f"--expect {made} --baseline {sound}" in out
    assert "\nbaseline =" not in made.read_text()
    assert call("check", sound, "--expect", made, "--baseline", sound)[0] == 0
    code, _, err = call("check", sound, "--expect", made)
    assert (code, "give --baseline" in err) == (2, True)


@pytest.fixture
def written(call, folder, tmp_path):
    expect = gate(tmp_path / "e.toml", GOOD, BAD, "num_traps < 1")
    files = {"--junit": "j.xml", "--sarif": "s.sarif", "--markdown": "m.md", "--model-card": "c.md", "--badge": "b.svg"}
    code, out, _ = call("check", folder / "sound.audit", "--expect", expect.name, "--json",
                        *[part for pair in files.items() for part in pair])  # fmt: skip
    assert code == 1
    return json.loads(out), {name: (tmp_path / name).read_text() for name in files.values()}


def test_json(written):
    document, _ = written
    assert document["passed"] is False
    assert document["verdict"] == "1 of 3 expectations hold"
    assert [item["status"] for item in document["outcomes"]] == ["passed", "failed", "not_evaluated"]


def test_junit(written):
    root = ET.fromstring(written[1]["j.xml"])
    (suite,) = root
    assert (suite.get("tests"), suite.get("failures"), suite.get("errors")) == ("3", "1", "1")
    passed, failed, blind = suite
    assert list(passed) == []
    assert len((failed.find("failure").text or "").splitlines()) == 9
    assert "not evaluated" in blind.find("error").get("message")
    assert (failed.find("failure").text or "").endswith("at e.toml:3")


def test_junit_is_valid_by_the_schema_of_jenkins(written):
    from lxml import etree

    schema = etree.XMLSchema(etree.parse(str(Path(__file__).with_name("junit.xsd"))))
    document = etree.fromstring(written[1]["j.xml"].encode())
    schema.assertValid(document)
    document.find(".//testcase").set("line", "3")
    assert not schema.validate(document)


@pytest.mark.parametrize("as_json", [False, True])
def test_github_is_told_at_the_line_of_what_fails(call, folder, tmp_path, monkeypatch, as_json):
    expect = gate(tmp_path / "e.toml", GOOD, BAD, "num_traps < 1")
    arguments = ["check", folder / "sound.audit", "--expect", expect.name, *(["--json"] if as_json else [])]
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    assert "::error" not in "".join(call(*arguments)[1:])
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    _, out, err = call(*arguments)
    lines = [line for line in (err if as_json else out).splitlines() if line.startswith("::")]
    assert lines[0].startswith("::error file=e.toml,line=3,title=E2%3A stable_rank")
    assert lines[1].startswith("::warning file=e.toml,line=4,title=E3")
    assert "%0A" in lines[0]
    if as_json:
        assert json.loads(out)["passed"] is False


def test_sarif(written):
    document = json.loads(written[1]["s.sarif"])
    assert document["version"] == "2.1.0"
    (run,) = document["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["E1", "E2", "E3"]
    assert len(run["results"]) == 9
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning")
        assert result["message"]["text"]
        (location,) = result["locations"]
        assert location["physicalLocation"]["artifactLocation"]["uri"] == "e.toml"
        assert location["physicalLocation"]["region"]["startLine"] >= 1
        assert location["logicalLocations"][0]["fullyQualifiedName"]
    names = {result["locations"][0]["logicalLocations"][0]["fullyQualifiedName"] for result in run["results"]}
    assert "model.layers.2.mlp.up_proj" in names


def test_markdown_card_and_badge(written):
    files = written[1]
    assert "❌ tailwise: 1 of 3 expectations hold" in files["m.md"]
    assert "stable_rank &lt; 0" in files["m.md"]
    assert files["c.md"].startswith("<!-- tailwise begins -->\n")
    assert "| mlp_up | 4 |" in files["c.md"]
    svg = ET.fromstring(files["b.svg"])
    assert svg.get("aria-label") == "tailwise: 1/3 hold"


def test_control_characters_and_bars_do_no_harm():
    from tailwise.judging.gates.expectation import CheckResult, Expectation, ExpectationOutcome, Violation
    from tailwise.judging.gates.expectation_text import to_markdown
    from tailwise.judging.gates.junit import to_junit

    bad = ExpectationOutcome(
        "E1", Expectation("metric", "alpha", name="a|b <c>\x00"), "failed", "x", 1, (Violation("l", "\x1b|y"),)
    )
    result = CheckResult("m\x07", "e.toml", (bad,))
    assert ET.fromstring(to_junit(result)) is not None
    assert "a\\|b &lt;c&gt;" in to_markdown(result)
