"""`tailwise compare` and `tailwise rank` as people type them."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path

import pytest
from safetensors.numpy import save_file

import tailwise as tw


@pytest.fixture
def here(tmp_path, make):
    """a.audit, b.audit and the models that they are of."""
    for seed, name in enumerate("ab"):
        tensors = make.noise(seed, blocks=2)
        if name == "b":
            tensors["model.layers.1.mlp.up_proj.weight"] = make.heavy(3)
        save_file(tensors, tmp_path / f"{name}.safetensors")
        tw.audit(tmp_path / f"{name}.safetensors", use_cache=False, baseline_replicas=2).save(
            tmp_path / f"{name}.audit"
        )
    return tmp_path


def test_two_audits(call, here):
    code, out, _ = call("compare", "a.audit", "b.audit")
    assert code == 0
    assert "mean α" in out
    assert "significant at a false discovery rate of 0.05" in out
    assert call("compare", "a.audit", "a.audit")[1].count("all matrices are identical") == 1


def test_weights_of_one_model_twice(call, here):
    code, out, err = call("compare", "a.safetensors", "a.safetensors", "--weights")
    assert (code, err) == (0, "")
    assert "all matrices are identical" in out
    assert "leading singular directions" not in out


def test_a_model_is_audited_with_the_recipe_of_the_audit(call, here):
    tw.audit(here / "a.safetensors", estimator="mid", use_cache=False, baseline_replicas=2).save(here / "m.audit")
    code, out, _ = call("compare", "m.audit", "b.safetensors", "--json")
    document = json.loads(out)
    assert code == 0
    assert not any("recipes differ" in note for note in document["notes"])


@pytest.mark.parametrize("pattern", ["(a+)+$", "(("])
def test_no_model_is_audited_by_an_endless_pattern_that_an_audit_holds(call, here, pattern):
    audit = tw.Audit.load("a.audit")
    selection = {**audit.provenance.selection, "layers": pattern}
    layers = {layer.row.name: layer for layer in audit}
    provenance = dataclasses.replace(audit.provenance, selection=selection)
    tw.Audit(audit.rows, layers, provenance).save(here / "e.audit")
    code, _, err = call("compare", "e.audit", "b.safetensors")
    assert code == 2
    assert "--layers of fewer repeats" in " ".join(err.split())
    assert call("compare", "e.audit", "b.audit")[0] == 0


def test_weights_and_files(call, here):
    outputs = [part for suffix in ("audit", "md", "csv", "json") for part in ("-o", f"d.{suffix}")]
    code, out, _ = call("compare", "a.safetensors", "b.audit", "--weights", "--directions", 4, *outputs)
    assert code == 0
    assert "‖ΔW‖/‖W₀‖" in out
    assert len(tw.Audit.load("d.audit")) == 4
    assert "‖ΔW‖/‖W₀‖" in Path("d.md").read_text()
    metrics = {row["metric"] for row in csv.DictReader(Path("d.csv").read_text().splitlines())}
    assert {"alpha", "relative_change", "cka"} <= metrics
    document = json.loads(Path("d.json").read_text())
    assert document["layers"][0]["weights"]["directions"] == 4


def test_several_against_a_base(call, here):
    _, out, _ = call("compare", "a.audit", "b.audit", "a.safetensors", "--base", "a.audit", "--json")
    documents = json.loads(out)
    assert [item["after"].rsplit("/", 1)[-1] for item in documents] == ["b.safetensors", "a.safetensors"]
    assert all(item["before"].endswith("a.safetensors") for item in documents)


def test_rank_with_scores(call, here):
    Path("s.csv").write_text("model,score\na.safetensors,1\nb.safetensors,2\n")
    code, out, _ = call("rank", "a.audit", "b.audit", "--scores", "s.csv", "-o", "r.md", "-o", "r.csv", "-o", "r.json")
    assert code == 0
    assert "Kendall τ" in out
    assert "too few" in out
    assert "| b.safetensors |" in Path("r.md").read_text()
    assert len(Path("r.csv").read_text().splitlines()) == 3
    assert json.loads(Path("r.json").read_text())["by"] == "mean_alpha_weighted"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["compare", "a.audit"], 2, "nothing to compare"),
        (["compare", "a.audit", "b.audit", "--fdr", "2"], 2, "false discovery"),
        (["compare", "a.audit", "b.audit", "--metrics", "alpah"], 2, "did you mean alpha"),
        (["compare", "a.audit", "b.audit", "-o", "x.audit"], 2, "add --weights"),
        (["compare", "a.audit", "b.audit", "-o", "x.xlsx"], 2, "suffix"),
        (["compare", "a.audit", "none.audit"], 3, "no such audit"),
        (["compare", "a.audit", "none.safetensors"], 3, "none.safetensors"),
        (["rank", "a.audit"], 2, "two models"),
        (["rank", "a.audit", "b.audit", "--by", "x"], 2, "number to rank by"),
        (["rank", "a.audit", "b.audit", "--scores", "none.csv"], 3, "could not be read"),
    ],
)
def test_wrong_requests(call, here, arguments, code, message):
    got, out, err = call(*arguments)
    assert (got, message in err) == (code, True), err
    assert "Traceback" not in err
    assert out == ""


def test_where_an_audit_says_that_its_model_is_is_told_before_it_is_asked_for(call, here, caplog):
    found = tw.Audit.load(here / "a.audit")
    away = dataclasses.replace(found.provenance, model="memory://nowhere/model")
    tw.Audit(found.rows, {layer.row.name: layer for layer in found}, away).save(here / "away.audit")
    assert call("compare", "a.audit", "away.audit")[0] == 0
    assert "asked for" not in caplog.text
    assert call("compare", "a.audit", "away.audit", "--weights")[0] == 3
    assert "away.audit names memory://nowhere/model, which is asked for now" in caplog.text
