"""Names from files: none computes in a spreadsheet, turns a line round, or moves a terminal's cursor."""

import csv
import io
import sys
import time
from collections import deque
from dataclasses import replace

import numpy as np
import pytest
from typer.testing import CliRunner

import tailwise as tw
import tailwise.core.harmless as bounds
from tailwise.audits.precision.study_files import to_csv as precision_csv
from tailwise.audits.prepare import Selection
from tailwise.cli.main import app
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import cell, listed, pattern_from_file, visible
from tailwise.core.layer_patterns import is_found
from tailwise.core.optional import missing
from tailwise.judging.gates.expectation import Expectation
from tailwise.judging.gates.expectation_text import to_model_card
from tailwise.report.comparison_page import ranking_csv
from tailwise.report.comparison_page import to_csv as comparison_csv
from tailwise.report.output_files import to_csv, to_markdown

TURNED = "layers.0.\u202etxt.exe"
MOVED = "layers.1.\x1b[2J\x1b[31mred"
FORMULA = "=cmd|' /C calc'!A0"


@pytest.fixture(scope="module")
def audit():
    rng = np.random.default_rng(0)
    found = tw.audit({f"l.{n}.weight": rng.standard_normal((60, 50)) for n in range(4)}, use_cache=False)
    layers = [replace(layer, row=replace(layer.row, name=name))
              for layer, name in zip(found, (TURNED, MOVED, FORMULA, "plain"), strict=True)]  # fmt: skip
    rows = [layer.row for layer in layers]
    unread = replace(rows[0], name="broken\u202e\x1b[2J", status="UNREADABLE", reason="\u2066why", metrics={})
    named = {row.name: layer for row, layer in zip(rows, layers, strict=True)}
    return tw.Audit([*rows, unread], named, found.provenance)


def harmless(text):
    return not any(sign in text for sign in "\u202e\u2066\x1b")


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1"])
def test_a_cell_that_would_be_computed_is_text(text):
    assert cell(text) == f"'{text}"


@pytest.mark.parametrize("value", [-1.5, None, "plain", "a=b", "", 3])
def test_other_cells_are_as_they_are(value):
    assert cell(value) == value


def test_names_in_other_alphabets_and_lines_stay(audit):
    for text in ("模型.слой\tα\nβ", "می‌خواهم", "👩‍🔬"):
        assert visible(text) == text


def test_every_table_of_text_is_harmless_in_a_spreadsheet(audit):
    comparison = tw.compare(audit, audit)
    ranking = tw.rank([audit, replace_model(audit, FORMULA)])
    tables = to_csv(audit.table()), comparison_csv([comparison]), ranking_csv(ranking), precision_csv([{"l": FORMULA}])
    for text in tables:
        words = [word for line in csv.reader(io.StringIO(text, newline="")) for word in line]
        assert any(FORMULA in word for word in words)
        assert not any(word.startswith(("=", "@")) for word in words)


def replace_model(audit, name):
    rows = list(audit.rows)
    return tw.Audit(rows, {layer.row.name: layer for layer in audit}, replace(audit.provenance, model=name))


@pytest.mark.parametrize("command", [["show"], ["diagnose"], ["show", "--layer", "plain"], ["compare"]])
def test_nothing_in_a_terminal_moves_the_cursor(audit, tmp_path, command, monkeypatch):
    path = str(audit.save(tmp_path / "a.audit"))
    more = [path] if command == ["compare"] else []
    done = CliRunner().invoke(app, [command[0], path, *more, *command[1:]])
    assert done.exit_code == 0, done.output
    assert harmless(done.output)


def test_an_error_says_a_name_without_its_controls(tmp_path, monkeypatch, capsys):
    from tailwise.cli import main

    monkeypatch.setattr(sys, "argv", ["tailwise", "show", str(tmp_path / "no\u202e\x1b[2J.audit")])
    with pytest.raises(SystemExit) as ended:
        main.run()
    assert ended.value.code == 3
    said = capsys.readouterr().err
    assert "no such audit" in said
    assert harmless(said)


def test_pages_and_markdown_show_names_without_their_controls(audit, tmp_path):
    pytest.importorskip("altair")
    from tailwise.report.html import report

    page = report([audit])
    assert "txt.exe" in page
    assert harmless(page)
    assert harmless(to_markdown(audit))


def test_a_report_carries_the_notices_of_the_script_in_it(audit):
    pytest.importorskip("altair")
    from tailwise.report.html import report
    from tailwise.report.shell import bundle

    page = report([audit])
    owners = ("University of Washington Interactive Data Lab", "Mike Bostock", "Observable, Inc.", "Mapbox",
              "Isaac Z. Schlueter", "Joachim Wester", "Simon Lydell", "jQuery Foundation", "Charles Karney",
              "Ricky Reusser", "Cynthia Brewer")  # fmt: skip
    for words in (*owners, "AS IS"):
        assert words in page
        assert words in bundle()  # which the app serves
    assert page.index("Interactive Data Lab") < page.index("vegaEmbed")


def test_a_package_that_lacks_another_is_missing(tmp_path, monkeypatch):
    (tmp_path / "half_installed.py").write_text("import surely_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert missing("json", "half_installed", "not_there_at_all") == [
        "half_installed (which lacks surely_not_there)",
        "not_there_at_all",
    ]


ENDLESS = ("(a+)+b", "(a*)*", "((a|b)+)*c", "(?:x+y?){9,}", ".*.*.*.*.*", "[", "a" * 2000, "(?=(a+))(b(c+)+)",
           "(a?){30}a{30}$", "a?" * 30 + "a" * 30, "(((a*){4}){4}){4}b", "(.|a)+$", "(a|aa)+$",
           "(a|ab)" * 20)  # fmt: skip
USUAL = {
    r".*\.layers\.\d+\.mlp\..*_proj$": "model.layers.3.mlp.up_proj",
    "q_proj|v_proj": "v_proj",
    r"(.*\.)?(down_proj)$": "a.down_proj",
    r"(layers\.(0|1)\.){1,2}x": "layers.0.x",
    r"model\.layers\.\d{1,3}\.(self_attn|attn|mlp)\.(q|k|v|o|up|gate|down)_proj": "model.layers.12.mlp.up_proj",
    r"(?:.*?(?:vision|image).*?(?:attn|mlp).*?(?:q_proj|fc1).*?)|(?:\blayers\.[\d]{1,}\.(?:attn|mlp))": "layers.3.mlp",
}


@pytest.mark.parametrize("text", ENDLESS)
def test_a_pattern_of_a_file_that_may_run_without_end_is_refused(text):
    with pytest.raises(ValueError, match="pattern"):
        pattern_from_file(text)


@pytest.mark.parametrize(("text", "name"), USUAL.items())
def test_patterns_that_models_carry_are_used(text, name):
    assert pattern_from_file(text).match(name)


POLYNOMIAL = {
    "adapter": ("(.*\\.)?(.*a.*a.*ab)$", "a" * 3000),
    "gate": ("a.*a.*a.*a.*[bc]", "a" * 4000),
    "scheme": ("b.*a.*a.*a.*a$", "ba" + "a" * 3000 + "c"),
    "words": (r"\w*x?\w*x?\w*[yz]", "x" * 3000),
}


@pytest.mark.parametrize("kind", POLYNOMIAL)
def test_a_pattern_that_takes_a_power_of_a_names_length_ends(kind, monkeypatch):
    monkeypatch.setattr(bounds, "_LONGEST_SEARCH", 0.05)
    text, name = POLYNOMIAL[kind]
    pattern = pattern_from_file(text)
    with pytest.raises(ValueError, match="without end"):
        pattern.search(name)
    with pytest.raises(ValueError, match="without end"):  # at once
        pattern.search(name[1:])
    assert pattern.search("xyz abcde bacad") in (True, False)


def test_slow_patterns_have_little_time_together(monkeypatch):
    monkeypatch.setattr(bounds, "_LONGEST_SEARCH", 0.05)
    monkeypatch.setattr(bounds, "_MOST_SLOW", 0.1)
    monkeypatch.setattr(bounds, "_slow", deque())
    for number in range(4):
        with pytest.raises(ValueError, match="without end"):
            pattern_from_file(f"a.*a.*a.*a.*[b{number}]").search("a" * 4000)
    assert bounds._time_left(time.monotonic()) == bounds._LEAST_TIME
    assert pattern_from_file(r"layers\.\d+\..*_proj").search("layers.3.up_proj")


@pytest.mark.parametrize("text", USUAL)
def test_patterns_that_models_carry_are_used_with_long_names_too(text):
    assert pattern_from_file(text).match("wrapped." * 400 + "x") in (True, False)
    assert pattern_from_file(r".*\.layers\.\d+\..*_proj$").search("wrapped." * 400 + "layers.3.mlp.up_proj")


@pytest.mark.parametrize("made", [lambda text: Expectation("metric", "alpha", layers=text), Selection])
def test_what_takes_layers_by_a_pattern_ends_with_a_name_of_any_length(made, monkeypatch):
    monkeypatch.setattr(bounds, "_LONGEST_SEARCH", 0.05)
    expected = made("a.*a.*a.*a.*[bd]")
    assert expected.takes("a.attn.ab.attn.bad", "")
    with pytest.raises(UsageError, match="fewer repeats"):
        expected.takes("a" * 4000, "")


def test_a_pattern_that_someone_typed_is_pythons_own():
    assert Selection(r"(\w+\.)+up_proj$").takes("layers.0.up_proj", "mlp_up")
    assert is_found("(a?){30}b", "ab")
    assert not is_found("(a?){30}b", "")


def test_a_gate_says_names_as_text_of_one_line():
    from tailwise.judging.gates.expectation import CheckResult, ExpectationOutcome
    from tailwise.judging.gates.expectation_text import to_markdown as comment
    from tailwise.judging.gates.expectation_text import to_text

    name = "x`<b>\n::error::pwn \u202e\x1b[2J](javascript:a)"
    expected = Expectation("metric", "alpha", name=name)
    outcome = ExpectationOutcome("E1", expected, "failed", name)
    result = CheckResult(name, name, (outcome,), ())
    for text in (to_text(result), comment(result)):
        assert harmless(text)
        assert not any(line.lstrip().startswith("::") for line in text.splitlines())
    assert "<b>" not in comment(result).replace("`x'<b> ::error", "")


def test_markdown_of_an_audit_holds_no_markup_of_names(audit):
    layers = [replace(layer, row=replace(layer.row, name=f"</td><script>{n}\n# x")) for n, layer in enumerate(audit)]
    rows, named = [layer.row for layer in layers], {layer.row.name: layer for layer in layers}
    hostile = tw.Audit(rows, named, replace(audit.provenance, model="<script>\n::error::x"))
    text = to_markdown(hostile)
    assert "\n# x" not in text
    assert "\n::error" not in text
    assert "<script>" not in "\n".join(line for line in text.splitlines() if line.startswith(("#", "|")))


def test_a_model_card_shows_roles_and_recipes_of_a_file_as_text(tmp_path):
    rng = np.random.default_rng(0)
    audit = tw.audit({"layers.0.weight": rng.standard_normal((70, 60))}, use_cache=False, baseline_replicas=2)
    rows = [replace(row, role="\u202e<b>role|x") for row in audit.rows]
    recipe = {**audit.provenance.recipe, "estimator": "ks`\n# head \u202e"}
    layers = {layer.row.name: replace(layer, row=rows[0]) for layer in audit}
    edited = tw.Audit(rows, layers, replace(audit.provenance, recipe=recipe))
    gates = tmp_path / "gates.toml"
    gates.write_text('expect = ["alpha in [1, 90]"]\n')
    card = to_model_card(tw.check(audit, gates), edited)
    assert "\u202e" not in card
    assert "<b>" not in card
    assert "\n# head" not in card


@pytest.mark.parametrize("part", ["what", "where", "fix"])
def test_a_message_is_short_whatever_a_file_names(part):
    long = "a" * 3_000_000
    error = UnreadableError(**{"what": "is damaged", "where": "x.pt", "fix": "save it again", part: long})
    assert len(str(error)) < 20_000 > len(error.what)
    assert "3000000 signs" in str(error)


def test_of_many_names_a_few_are_listed_each_of_them_short():
    assert listed(["a", "b"]) == "a, b"
    assert listed([*"abc"], 2) == "a, b and 1 more"
    assert len(listed(["a" * 3_000_000] * 1000)) < 5000


def test_what_a_training_checkpoint_left_out_is_told_in_few_words(tmp_path):
    import torch

    moments = {"exp_avg": torch.ones(3, 3), "exp_avg_sq": torch.ones(3, 3)}
    torch.save({"w": torch.eye(60), **{f"{n}{'a' * 3000}": moments for n in range(500)}}, tmp_path / "m.pt")
    found = tw.audit(tmp_path / "m.pt", use_cache=False)
    (note,) = [note for note in found.provenance.notes if note.startswith("left out")]
    assert "and 480 more" in note
    assert len(note) < 6000
