"""`tailwise plot` and `tailwise report` as people type them."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

import tailwise as tw
from tailwise.cli.main import run


@pytest.fixture
def saved(audit, base, plain, tmp_path):
    for name, item in (("a", audit), ("b", base), ("plain", plain)):
        item.save(tmp_path / f"{name}.audit")
    return tmp_path


@pytest.fixture
def call(saved, monkeypatch, capsys):
    """Run a command line among the saved audits: (exit code, stdout, stderr)."""
    monkeypatch.chdir(saved)

    def command(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tailwise", *words])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return command


def test_plot_writes_a_picture(call, saved):
    code, out, _ = call("plot", "a.audit", "--chart", "alpha_hist", "-o", "x.png")
    assert code == 0
    assert "x.png" in out
    assert (saved / "x.png").read_bytes().startswith(b"\x89PNG")


def test_plot_takes_a_layer_a_metric_a_base_and_a_theme(call, saved):
    layer = "model.layers.1.mlp.up_proj"
    assert call("plot", "a.audit", "--chart", "layer", "--layer", layer, "-o", "l.svg")[0] == 0
    assert layer in (saved / "l.svg").read_text(encoding="utf-8")
    assert call("plot", "a.audit", "--chart", "heatmap", "--metric", "stable_rank", "-o", "h.svg")[0] == 0
    assert (
        call("plot", "a.audit", "--chart", "base_alpha", "--base", "b.audit", "--theme", "dark", "-o", "b.svg")[0] == 0
    )
    assert "#15181d" in (saved / "b.svg").read_text(encoding="utf-8")
    assert call("plot", "a.audit", "b.audit", "--chart", "models_alpha", "-o", "m.svg")[0] == 0


def test_plot_gives_the_spec_as_json(call):
    code, out, _ = call("plot", "a.audit", "--chart", "alpha_hist", "--json")
    assert code == 0
    assert json.loads(out)["$schema"].startswith("https://vega.github.io/schema/vega-lite/")


def test_plot_lists_every_chart(call):
    code, out, _ = call("plot", "--list")
    assert code == 0
    assert "alpha_hist" in out
    assert "delta_rank" in out
    assert len(json.loads(call("plot", "--list", "--json")[1])) == len(out.splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("plot", "a.audit", "-o", "x.png"), "--chart"),
        (("plot", "a.audit", "--chart", "alpha_hits", "-o", "x.png"), "alpha_hist"),
        (("plot", "a.audit", "--chart", "alpha_hist", "-o", "x.bmp"), "suffix"),
        (("plot", "plain.audit", "--chart", "traps_hist", "-o", "x.png"), "--randomize"),
        (("plot", "a.audit", "--chart", "layer", "--layer", "model.layers.1.mlp.up_prj", "-o", "x.png"), "up_proj"),
        (("report", "a.audit", "-o", "x.txt"), "suffix"),
    ],
)
def test_what_cannot_be_is_one_message_and_exit_code_2(call, words, says):
    code, _, err = call(*words)
    assert code == 2
    assert says in err


def test_report_writes_one_page(call, saved):
    code, out, _ = call("report", "a.audit", "--base", "b.audit", "-o", "r.html")
    assert code == 0
    assert "MB" in out
    assert "Against the base" in (saved / "r.html").read_text(encoding="utf-8")


def test_without_the_optional_packages_the_message_says_what_to_install(call, monkeypatch):
    from tailwise.report.charts import chart

    monkeypatch.setattr(chart, "missing", lambda *names: list(names))
    for words in (("plot", "a.audit", "--chart", "alpha_hist", "-o", "x.png"), ("report", "a.audit", "-o", "r.html")):
        code, _, err = call(*words)
        assert code == 2
        assert 'pip install "tailwise[report]"' in err


def test_reports_import_no_torch():
    script = "import sys, tailwise.report.html, tailwise.report.render; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def test_the_terminal_shows_alpha_along_depth(call):
    _, out, _ = call("show", "a.audit")
    assert "block 0 → 3" in out
    assert any(bar in out for bar in "▁▂▃▄▅▆▇█")


@pytest.mark.parametrize("command", [["report"], ["plot", "--chart", "alpha_hist", "-o", "x.svg"]])
def test_without_the_optional_packages_both_say_how_to_get_them(command, monkeypatch, tmp_path, capsys):
    from tailwise.cli.main import run

    monkeypatch.chdir(tmp_path)
    tw.audit({"w.weight": np.random.default_rng(0).normal(size=(60, 50))}, use_cache=False).save("a.audit")
    monkeypatch.setattr("tailwise.report.charts.chart.missing", lambda *names: list(names))
    monkeypatch.setattr("sys.argv", ["tailwise", command[0], "a.audit", *command[1:]])
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 2
    assert 'pip install "tailwise[report]"' in capsys.readouterr().err
