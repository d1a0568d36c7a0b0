"""`tailwise plan prune|show|diff|validate`."""

from __future__ import annotations

import json

import pytest
from made_plans import audit_of, rows_of
from typer.testing import CliRunner

from tailwise.cli.plan_commands import app
from tailwise.compression.plans.plan import Plan
from tailwise.core.errors import UsageError


@pytest.fixture
def run(tmp_path, monkeypatch, audit):
    """Call the commands in a folder that holds `a.audit`: (exit code, output)."""
    monkeypatch.chdir(tmp_path)
    audit.save(tmp_path / "a.audit")

    def call(*arguments: object) -> tuple[int, str]:
        result = CliRunner().invoke(app, [str(item) for item in arguments])
        if isinstance(result.exception, Exception):
            raise result.exception
        return result.exit_code, result.output

    return call


def test_a_plan_is_made_shown_and_written(run, tmp_path):
    code, out = run("prune", "a.audit", "--sparsity", "0.7", "--allocator", "alpha", "-o", "p.json")
    assert code == 0
    assert "budget: requested 0.7, achieved 0.700000 of 90,112 parameters" in out
    assert "against depth" in out
    assert "written to p.json" in out
    assert Plan.load(tmp_path / "p.json").sparsity == pytest.approx(0.7, abs=1e-6)


def test_a_dry_run_writes_nothing(run, tmp_path):
    before = sorted(tmp_path.iterdir())
    code, out = run("prune", "a.audit", "--sparsity", "0.7", "--dry-run", "-o", "p.json")
    assert (code, sorted(tmp_path.iterdir())) == (0, before)
    assert "written" not in out


def test_without_a_name_it_is_plan_json_and_an_edited_one_is_not_replaced(run):
    assert run("prune", "a.audit", "--sparsity", "0.7")[0] == 0
    with pytest.raises(UsageError, match="name the plan with -o"):
        run("prune", "a.audit", "--sparsity", "0.6")


def test_json_is_the_plan_itself_and_writes_no_file(run, tmp_path):
    _, out = run("prune", "a.audit", "--sparsity", "0.7", "--json")
    assert json.loads(out)["budget"]["requested"] == 0.7
    assert not (tmp_path / "plan.json").exists()


def test_every_option_reaches_the_plan(run):
    _, out = run("prune", "a.audit", "--sparsity", "0.6", "--operator", "sparsegpt", "--allocator", "alpha",
                 "--mapping", "mixed", "--tau", "0.2", "--roles", "attn_q,mlp_up", "--layers", "layers", "--estimator",
                 "mid", "--also", "lm_head", "--no-clamp", "--json")  # fmt: skip
    found = json.loads(out)
    assert found["operator"] == "sparsegpt"
    assert found["settings"] == {
        "mapping": "mixed", "tau": 0.2, "pattern": "unstructured", "estimator": "mid", "clamp": False,
        "roles": ["attn_q", "mlp_up"], "layers": "layers", "also": ["lm_head"]}  # fmt: skip


def test_long_tables_are_cut_with_a_count(run):
    _, out = run("prune", "a.audit", "--sparsity", "0.7", "--rows", "2", "--dry-run")
    assert "… and 2 more; --rows 0 shows all" in out


def test_show_lists_entries_with_reasons(run):
    run("prune", "a.audit", "--sparsity", "0.7", "--allocator", "depth", "-o", "p.yaml")
    _, out = run("show", "p.yaml", "--entries")
    assert "layers.0.attn_q.weight" in out
    assert "block 1 of 4: prune less" in out


def test_diff_says_what_changed(run):
    run("prune", "a.audit", "--sparsity", "0.7", "-o", "p.json")
    run("prune", "a.audit", "--sparsity", "0.6", "--allocator", "depth", "-o", "q.json")
    _, out = run("diff", "p.json", "q.json")
    assert "16 tensors changed, 0 added, 0 removed; sparsity 0.700000 → 0.600000" in out
    assert "the two do the same" in run("diff", "p.json", "p.json")[1]
    assert json.loads(run("diff", "p.json", "q.json", "--json")[1])["same"] is False


def test_validate_ends_with_one_where_the_plan_is_for_another_model(run, tmp_path):
    run("prune", "a.audit", "--sparsity", "0.7", "-o", "p.json")
    assert run("validate", "p.json", "--audit", "a.audit") == (
        0, "valid, fits a.audit: 16 tensors, sparsity 0.7\n")  # fmt: skip
    audit_of(rows_of(3), fingerprint="e" * 64).save(tmp_path / "b.audit")
    code, out = run("validate", "p.json", "--audit", "b.audit")
    assert code == 1
    assert "does not fit: there is no tensor layers.3.attn_q.weight" in out
    assert json.loads(run("validate", "p.json", "--audit", "b.audit", "--json")[1])["valid"] is False


def test_validate_notes_a_budget_that_an_edit_moved(run, tmp_path):
    run("prune", "a.audit", "--sparsity", "0.7", "-o", "p.json")
    document = json.loads((tmp_path / "p.json").read_text())
    document["entries"]["layers.0.attn_q.weight"]["sparsity"] = 0.1
    (tmp_path / "p.json").write_text(json.dumps(document))
    code, out = run("validate", "p.json")
    assert code == 0
    assert "note: the entries reach 0.672727 and no longer 0.700000" in out


@pytest.mark.parametrize("suffix", [".svg", ".json"])
def test_a_plan_is_drawn(run, tmp_path, suffix):
    pytest.importorskip("altair")
    pytest.importorskip("vl_convert")
    run("prune", "a.audit", "--sparsity", "0.7", "--allocator", "alpha", "-o", "p.json")
    run("show", "p.json", "--chart", f"x{suffix}", "--theme", "dark")
    text = (tmp_path / f"x{suffix}").read_text()
    assert "sparsity along depth" in text
    assert "mlp_up" in text


def test_a_plan_of_bits_is_drawn_and_of_one_that_does_both_the_sparsity(run, tmp_path):
    pytest.importorskip("altair")
    run("prune", "a.audit", "--sparsity", "0.7", "--allocator", "alpha", "-o", "p.json")
    run("quantize", "a.audit", "--bits", "5", "--allocator", "alphaq", "-o", "q.json")
    run("combine", "p.json", "q.json", "-o", "both.json")
    for name, unit in (("q", "bits per weight"), ("both", "sparsity")):
        code, _ = run("show", f"{name}.json", "--chart", f"{name}-chart.json")
        assert code == 0
        assert f"{unit} along depth" in (tmp_path / f"{name}-chart.json").read_text()


def test_a_model_is_audited_first(run, stories):
    code, out = run("prune", stories, "--sparsity", "0.5", "--allocator", "alpha", "--workers", "1", "--json")
    found = json.loads(out[out.index("{") :])
    assert code == 0
    assert found["settings"]["estimator"] == "peak"
    assert len(found["entries"]) == 35


def test_a_plan_made_by_hand_without_what_it_reached_is_shown(run, tmp_path):
    text = {"parameters": 4, "sparsity": 0.5}
    document = {
        "tailwise_plan": 1,
        "kind": "prune",
        "operator": "wanda",
        "budget": {"requested": 0.5},
        "entries": {"a": text},
    }
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert run("show", "p.json")[0] == 0


@pytest.mark.parametrize("asked", ["0.7", "70%", "70 %", "7e-1"])
def test_a_sparsity_is_a_fraction_or_a_percentage(run, asked):
    code, out = run("prune", "a.audit", "--sparsity", asked, "--json")
    assert code == 0
    assert json.loads(out)["budget"]["requested"] == 0.7


def test_a_sparsity_that_is_no_number_is_one_error(run):
    with pytest.raises(UsageError, match="no sparsity"):
        run("prune", "a.audit", "--sparsity", "much")
