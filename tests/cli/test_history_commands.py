"""`tailwise history`, `store`, `watch`, `diff`, `bisect` and `audit --all-checkpoints` as people type them."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import typer
from safetensors.torch import save_file

import tailwise as tw
from tailwise.history.jsonl import JsonlHistory
from tailwise.history.point import Alarm, Point
from tailwise.history.store import History

UP = "model.layers.0.mlp.up_proj"


@pytest.fixture
def run(tmp_path) -> Path:
    """Five checkpoints, of which a layer has rank one from the third on."""
    folder, generator = tmp_path / "llama", torch.Generator().manual_seed(0)
    for step in range(1, 6):
        place = folder / f"step-{100 * step}"
        place.mkdir(parents=True)
        tensors = {f"model.layers.{b}.mlp.up_proj.weight": torch.randn(96, 64, generator=generator) for b in range(2)}
        if step >= 3:
            tensors[f"{UP}.weight"] = torch.outer(torch.randn(96, generator=generator), torch.randn(64))
        save_file(tensors, place / "model.safetensors")
    return folder


@pytest.fixture
def store(tmp_path) -> Path:
    """A monitor's points and an alarm."""
    path = tmp_path / "h.db"
    with History(path) as history:
        history.add_all(
            Point("a", step, "cheap", 1000.0 + step, {UP: {"alpha": 3.0 + step}}, {"loss": 1.0 / step})
            for step in range(1, 31)
        )
        history.add_alarm(Alarm("a", 7, 5.0, "TW401", "warning", "alpha drifts", (UP,), {"alpha": 9.0}, 5))
        history.add_point(Point("b", 1, "full", 1.0, {UP: {"alpha": float("nan")}}))
    return path


def test_runs_are_listed(call, store):
    code, out, _ = call("history", "--store", store)
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["run", "a", "b"]
    assert json.loads(call("history", "--store", store, "--json")[1])[0]["points"] == 30


def test_the_store_may_come_from_the_environment(call, store, monkeypatch):
    monkeypatch.setenv("TAILWISE_STORE", str(store))
    assert "TW401" in call("history", "a")[1]


def test_a_run_is_shown_with_its_last_points_alarms_and_metrics(call, store):
    code, out, _ = call("history", "a", "--store", store)
    assert code == 0
    assert "and 10 before" in out
    assert "alpha drifts" in out
    assert "metrics: alpha" in out
    document = json.loads(call("history", "a", "--store", store, "--json", "--steps", "5:6")[1])
    assert [line["step"] for line in document["points"]] == [5, 6]
    assert document["alarms"][0]["times"] == 1
    assert document["latest"]["step"] == 30


def test_a_metric_over_time(call, store, tmp_path):
    code, out, _ = call(
        "history", "a", "--store", store, "--metric", "alpha", "--steps", ":2", "-o", tmp_path / "x.csv"
    )
    assert code == 0
    assert out.splitlines()[0].split() == ["step", "cadence", "role", "alpha"]
    with (tmp_path / "x.csv").open() as file:
        assert [row["alpha"] for row in csv.DictReader(file)] == ["4.0", "5.0"]
    lines = json.loads(call("history", "a", "--store", store, "--metric", "alpha", "--layers", "up", "--json")[1])
    assert lines[0] == {"step": 1, "cadence": "cheap", "layer": UP, "role": "mlp_up", "block": 0, "alpha": 4.0}
    assert json.loads(call("history", "b", "--store", store, "--metric", "alpha", "--json")[1])[0]["alpha"] is None


@pytest.mark.parametrize("name", ["x.json", "x.parquet"])
def test_series_as_files(call, store, tmp_path, name):
    code, _, _ = call("history", "a", "--store", store, "--metric", "alpha", "-o", tmp_path / name)
    assert code == 0
    path = tmp_path / name
    count = len(json.loads(path.read_text())) if path.suffix == ".json" else pq.read_table(path).num_rows
    assert count == 30


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["history"], "no store was given"),
        (["history", "--store", "absent.db"], "no such store"),
        (["history", "lama", "--store", "h.db"], "no run named 'lama'"),
        (["history", "--store", "h.db", "--metric", "alpha"], "a metric is one of a run"),
        (["history", "a", "--store", "h.db", "--layers", "x"], "give --metric"),
        (["history", "a", "--store", "h.db", "--metric", "alhpa"], "did you mean alpha"),
        (["history", "a", "--store", "h.db", "--metric", "alpha", "-o", "x.xls"], "suffix '.xls'"),
        (["history", "a", "--store", "h.db", "--steps", "a:b"], "no range of steps"),
        (["store", "prune", "--store", "h.db"], "--keep-every"),
        (["store", "delete", "lama", "--store", "h.db"], "no run named 'lama'"),
        (["diff", "1", "2", "--store", "h.db"], "several runs"),
        (["diff", "1", "99", "--store", "h.db", "--run", "a"], "has no step 99"),
        (["diff", "one", "2", "--store", "h.db", "--run", "a"], "'one' is no step"),
        (["diff", "1", "2", "--store", "h.db", "--run", "a", "--randomize"], "is not audited again"),
        (["diff", "1", "2", "--checkpoints", "empty"], "holds no checkpoints"),
        (["history", "a", "--store", "h.db", "--metric", "loss"], "a number of the whole model"),
        (["watch", "empty"], "no store was given"),
        (["bisect", "empty", "--rule", "TW301"], "holds no checkpoints"),
        (["bisect", "empty", "--rule", "TW3"], "no rule named 'TW3'"),
        (["audit", "empty", "--all-checkpoints"], "holds no checkpoints"),
        (["audit", "empty", "--all-checkpoints", "--json"], "writes audits"),
        (["audit", "empty", "--run", "x"], "belong to --all-checkpoints"),
    ],
)
def test_wrong_requests_say_what_to_do(call, store, tmp_path, arguments, said):
    (tmp_path / "empty").mkdir()
    code, _, err = call(*arguments)
    assert code in (2, 3)
    assert said in err


def test_pruning_and_deleting(call, store):
    code, out, _ = call("store", "prune", "a", "--store", store, "--keep-last", 2, "--dry-run")
    assert (code, out) == (0, "26 points and audits would go\n")
    code, out, _ = call("store", "prune", "--store", store, "--keep-last", 2)
    assert (code, out) == (0, "26 points and audits removed\n")
    with History(store) as history:
        assert [item.step for item in history.points("a")] == [1, 7, 29, 30]
    code, out, _ = call("store", "delete", "a", "--yes", "--store", store)
    assert (code, out) == (0, "4 points and audits removed\n")


def test_deleting_asks_first(call, store, monkeypatch):
    def decline(text, *, abort):
        assert "Remove 'a'" in text
        raise typer.Abort

    monkeypatch.setattr("typer.confirm", decline)
    code, _, _ = call("store", "delete", "a", "--store", store)
    assert code == 1
    with History(store) as history:
        assert len(history.runs()) == 2


def test_exporting(call, store, tmp_path):
    code, out, _ = call("store", "export", tmp_path / "out", "--store", store, "--run", "a")
    assert code == 0
    assert out.count("written to") == 4
    assert pq.read_table(tmp_path / "out" / "a" / "series.parquet").num_rows == 30


def test_lines_are_imported_once(call, tmp_path):
    with JsonlHistory(tmp_path / "x.jsonl") as history:
        for step in (1, 2):
            history.write(Point("j", step, "cheap", 1.0, {UP: {"alpha": 1.0}}))
        history.write(Alarm("j", 1, 1.0, "TW401", "note", "t"))
    for said in ("2 points and 1 alarms added; 0 were known", "0 points and 0 alarms added; 3 were known"):
        assert said in call("store", "import", tmp_path / "x.jsonl", "--store", tmp_path / "new.db")[1]


def test_watching_once_then_history_diff_and_store_add(call, run, tmp_path):
    store = tmp_path / "w.db"
    shutil.copytree(run / "step-500", run / "step-600")
    (run / "step-600" / "model.safetensors").write_bytes(b"\x10")
    code, out, err = call("watch", run, "--once", "--store", store, "-o", tmp_path / "audits", "--settle", 0)
    assert code == 0, err
    assert "step 500  2 matrices" in out
    assert "step-600  left for later" in out
    code, out, _ = call("history", "llama", "--store", store)
    assert "5 audits, of which 5 have a file" in out
    code, out, err = call("diff", "first", "last", "--store", store, "-o", tmp_path / "d.json")
    assert code == 0, err
    assert UP in out
    assert "no file was written" not in out
    assert json.loads((tmp_path / "d.json").read_text())["layers"]
    audits = sorted((tmp_path / "audits").glob("*.audit"))
    code, out, _ = call("store", "add", *audits, "--store", tmp_path / "added.db", "--run", "again")
    assert code == 0
    assert "step 500 of again" in out
    audits[0].unlink()
    _, out, _ = call("diff", "100", "500", "--store", store, "--rows", 0)
    assert "the spectra of step 100 are not there" in " ".join(out.split())


def test_watching_once_where_nothing_is_new_says_so(call, run, tmp_path):
    for said in ("", "nothing new"):
        code, _, err = call("watch", run, "--once", "--store", tmp_path / "w.db", "--settle", 0)
        assert code == 0, err
        assert said in err


def test_a_range_of_steps_that_ends_before_it_begins_is_refused(call, store):
    code, _, err = call("history", "a", "--store", store, "--steps", "20:10")
    assert code != 0
    assert "10:20" in err


def test_watching_needs_no_store_where_files_are_kept(call, run, tmp_path):
    code, _, err = call("watch", run, "--once", "-o", tmp_path / "audits", "--settle", 0)
    assert code == 0, err
    assert len(list((tmp_path / "audits").glob("*.audit"))) == 5


def test_watching_ends_with_ctrl_c(call, run, tmp_path, monkeypatch):
    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setattr("time.sleep", interrupted)
    monkeypatch.setattr("tailwise.history.runs.watch.follow.__defaults__", (interrupted, print))
    code, out, _ = call("watch", run, "--store", tmp_path / "w.db", "--settle", 0)
    assert code == 130
    assert "step 500" in out


def test_an_audit_of_unknown_step_asks_for_one(call, tmp_path):
    (tmp_path / "models").mkdir()
    save_file({"w.weight": torch.randn(20, 20)}, tmp_path / "models" / "final.safetensors")
    call("audit", tmp_path / "models" / "final.safetensors", "-o", tmp_path / "final.audit")
    code, _, err = call("store", "add", tmp_path / "final.audit", "--store", tmp_path / "w.db")
    assert code == 2
    assert "give --step" in err
    code, out, _ = call(
        "store", "add", tmp_path / "final.audit", "--step", 9, "--run", "r", "--store", tmp_path / "w.db"
    )
    assert "step 9 of r" in out


def test_all_checkpoints_leave_a_folder_of_audits(call, run):
    code, _, err = call("audit", run, "--all-checkpoints")
    assert code == 0, err
    assert len(list(Path("llama-audits").glob("*.audit"))) == 5
    assert "step 100  known" in call("audit", run, "--all-checkpoints")[1]


def test_each_of_all_checkpoints_is_judged_and_one_saved_twice_is_told(call, run):
    shutil.copy(run / "step-300" / "model.safetensors", run / "step-400" / "model.safetensors")
    out = call("audit", run, "--all-checkpoints")[1]
    of = {int(part.partition("  ")[0]): part for part in out.split("step ") if "  " in part and "matrices" in part}
    assert ["unhealthy: " in of[step] for step in (100, 200, 300, 400, 500)] == [False, False, True, True, True]
    assert "not trained yet: " in of[100]
    assert "Unhealthy from step 300 to the last: " in out
    assert "The weights stand still from step 300 to step 400, to the byte: nothing" in out
    assert "Not trained yet from step 100 to step 200, as runs begin." in out
    assert "(model.layers.1.mlp.up_proj), and 3 other findings" in of[300]
    assert "other findings" not in of[200]
    assert [step for step, part in of.items() if "the same weights as" in part] == [400]


def test_a_silent_bisection_says_what_it_cannot_see(call, run):
    out = call("bisect", run, "--rule", "TW603", "--layers", "layers.1", "--quick")[1]
    assert "A fault that came and went" in out
    assert "--all-checkpoints" in out


def test_a_folder_of_checkpoints_is_pointed_to_all_of_them(call, run):
    code, _, err = call("audit", run)
    assert code == 2
    assert "--all-checkpoints" in err


def test_a_checkpoint_that_cannot_be_read_is_the_exit_code(call, run, tmp_path):
    (run / "step-200" / "model.safetensors").write_bytes(b"x")
    code, out, _ = call("audit", run, "--all-checkpoints", "--store", tmp_path / "w.db")
    assert code == 3
    assert "step 500  2 matrices" in out


def test_the_diff_of_two_checkpoints(call, run):
    code, out, err = call("diff", "100", "step-300", "--checkpoints", run, "--json")
    assert code == 0, err
    assert {layer["name"] for layer in json.loads(out)["layers"]} == {UP, "model.layers.1.mlp.up_proj"}


def test_the_diff_of_two_points_of_a_monitor(call, store):
    code, out, err = call("diff", "1", "30", "--store", store, "--run", "a")
    assert code == 0, err
    assert "is a monitor's point, without spectra" in " ".join(out.split())


def test_bisect_names_the_step_and_the_layer(call, run):
    code, out, err = call("bisect", run, "--rule", "TW603")
    assert code == 0, err
    assert "began after step 200 and by step 300" in out
    assert UP in out
    assert "Not monotone" not in out
    document = json.loads(call("bisect", run, "--rule", "TW603", "--json", "--quick")[1])
    assert (document["last_good"], document["first_bad"], document["monotone"]) == (200, 300, True)


def test_bisect_says_where_nothing_or_everything_is_wrong_and_what_came_and_went(call, run):
    assert "is silent at the last step" in call("bisect", run, "--rule", "TW603", "--layers", "layers.1")[1]
    for step in (100, 200):
        shutil.copy(run / "step-300" / "model.safetensors", run / f"step-{step}" / "model.safetensors")
    assert "is there from the first step, 100" in call("bisect", run, "--rule", "TW603")[1]
    shutil.rmtree(run / "step-400")
    for step in (100, 300):
        save_file({f"{UP}.weight": torch.randn(96, 64)}, run / f"step-{step}" / "model.safetensors")
    assert "Not monotone: the rule is silent again at step 300" in call("bisect", run, "--rule", "TW603")[1]


def test_medians_of_exponents_are_of_trusted_fits_alone(call, tmp_path):
    rng = np.random.default_rng(3)
    left, _, right = np.linalg.svd(rng.standard_normal((96, 64)), full_matrices=False)
    noise = {f"layers.{block}.mlp.up_proj.weight": rng.standard_normal((96, 64)) for block in range(3)}
    trained = {**noise, "layers.0.mlp.up_proj.weight": (left * np.arange(1, 65) ** -0.7) @ right}
    audits = [tw.audit(one, use_cache=False) for one in (noise, trained)]
    with History(tmp_path / "h.db") as history:
        for step, audit in enumerate(audits):
            history.add_audit(audit, "a", step)
    code, out, said = call("history", "a", "--store", tmp_path / "h.db", "--metric", "alpha,stable_rank", "--json")
    assert code == 0
    lines = json.loads(out)
    assert [line["alpha"] for line in lines] == [None, pytest.approx(audits[1].summary()["alpha"])]
    assert all(line["stable_rank"] > 1 for line in lines)
    assert "5 of 6 fits of alpha are not trusted, and left out of the medians" in said
