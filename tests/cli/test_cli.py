"""The commands as people type them: what they print, write and end with."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw


@pytest.fixture
def model(tmp_path: Path) -> Path:
    generator = torch.Generator().manual_seed(0)
    folder = tmp_path / "tiny"
    folder.mkdir()
    tensors = {
        f"model.layers.{block}.{part}.weight": torch.randn(96, 64, generator=generator)
        for block in range(3)
        for part in ("self_attn.q_proj", "mlp.up_proj")
    }
    tensors["model.norm.weight"] = torch.ones(64)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 3}')
    return folder


@pytest.fixture
def call(call, monkeypatch, tmp_path):
    """As everywhere, but in a folder that is empty."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return call


def test_audit_prints_a_table_and_leaves_an_audit(call, model):
    code, out, _ = call("audit", model)
    assert code == 0
    assert "model.layers.2.mlp.up_proj" in out
    assert "6 matrices measured" in out
    assert "1 not a matrix" in out
    saved = tw.Audit.load("tiny.audit")
    assert len(saved) == 6
    assert saved["model.layers.0.mlp.up_proj.weight"].spectrum.m == 64


def test_a_second_audit_reuses_every_spectrum(call, model):
    call("audit", model)
    _, out, _ = call("audit", model, "--estimator", "mid")
    assert "(6 spectra reused)" in out


def test_a_partial_audit_does_not_replace_the_whole_one(call, model):
    call("audit", model)
    call("audit", model, "--layers", "layers.0")
    assert len(tw.Audit.load("tiny.audit")) == 6
    assert len(list(Path().glob("tiny-*.audit"))) == 1


def test_another_model_of_the_same_name_does_not_replace_the_audit(call, model, tmp_path):
    call("audit", model)
    other = tmp_path / "elsewhere" / "tiny"
    other.mkdir(parents=True)
    save_file({"w.weight": torch.randn(20, 20)}, other / "model.safetensors")
    call("audit", other)
    assert len(tw.Audit.load("tiny.audit")) == 6


def test_json_alone_is_on_stdout(call, model):
    code, out, err = call("audit", model, "--json")
    document = json.loads(out)
    assert code == 0
    assert len(document["layers"]) == 7
    assert document["layers"][0]["alpha"] > 1
    assert document["provenance"]["recipe"]["estimator"] == "ks"
    assert "matrices measured" in err
    assert not list(Path().iterdir())


def names_in(path: Path) -> list[str]:
    if path.suffix == ".parquet":
        return pq.read_table(path)["name"].to_pylist()
    if path.suffix == ".audit":
        return tw.Audit.load(path).table()["name"]
    text = path.read_text()
    if path.suffix == ".json":
        return [row["name"] for row in json.loads(text)["layers"]]
    if path.suffix == ".csv":
        return [row["name"] for row in csv.DictReader(text.splitlines())]
    return [line.split("|")[1].strip() for line in text.splitlines() if line.startswith("| model")]


@pytest.mark.parametrize("suffix", ["json", "csv", "parquet", "md", "audit"])
def test_output_by_suffix(call, model, suffix):
    code, _, _ = call("audit", model, "-o", f"out/x.{suffix}")
    assert code == 0
    path = Path(f"out/x.{suffix}")
    assert "model.layers.1.self_attn.q_proj" in names_in(path)


def test_csv_keeps_full_precision(call, model):
    call("audit", model, "-o", "x.csv", "-o", "x.audit")
    saved = tw.Audit.load("x.audit")["model.layers.1.mlp.up_proj"]
    row = next(
        row
        for row in csv.DictReader(Path("x.csv").read_text().splitlines())
        if row["name"] == "model.layers.1.mlp.up_proj"
    )
    assert float(row["alpha"]) == saved.row.metrics["alpha"]


def test_layers_and_roles_select(call, model):
    _, out, _ = call("audit", model, "--layers", r"layers\.[01]", "--roles", "attn_q", "--json")
    names = [row["name"] for row in json.loads(out)["layers"] if row["status"] == "OK"]
    assert names == ["model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.q_proj"]


def test_metrics_selects_columns_and_switches_on_what_they_need(call, model):
    _, out, _ = call("audit", model, "--metrics", "num_traps,stable_rank", "--layers", "layers.0.mlp", "--json")
    row = json.loads(out)["layers"][0]
    assert row["num_traps"] is not None
    assert "alpha_hill" not in row


def test_dry_run_reads_no_weight(call, model):
    shard = model / "model.safetensors"
    data = bytearray(shard.read_bytes())
    data[-4:] = b"\xff\xff\xff\xff"  # a NaN: the audit would see it, the dry run must not
    shard.write_bytes(data)
    code, out, _ = call("audit", model, "--dry-run", "--json")
    facts = json.loads(out)
    assert code == 0
    assert facts["matrices"] == 6
    assert facts["bytes"] == 6 * 96 * 64 * 4
    assert facts["cached"] == 0
    assert not list(Path().iterdir())


def test_dry_run_knows_what_is_cached(call, model):
    call("audit", model)
    _, out, _ = call("audit", model, "--dry-run", "--json")
    assert json.loads(out)["cached"] == 6


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--layers", "nothing"], 2, "none of the 6 matrices is selected"),
        (["--layers", "(("], 2, "not a regular expression"),
        (["--metrics", "alpah"], 2, "did you mean alpha"),
        (["--roles", "attnq"], 2, "did you mean attn_q"),
        (["--estimator", "hil"], 2, "there is no estimator named 'hil'"),
        (["--k-frac", "1.5"], 2, "k_frac"),
        (["--device", "cuda:7"], 2, "CUDA"),
        (["--device", "gpu!"], 2, "not a device"),
        (["-o", "x.xlsx"], 2, "suffix"),
        (["-o", f"{__file__}/x.csv"], 2, "cannot be written"),
        (["--base", "nowhere"], 2, "base"),
    ],
)
def test_wrong_requests_end_with_two_and_one_message(call, model, arguments, code, message):
    got, out, err = call("audit", model, *arguments)
    assert got == code
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    assert not list(Path().iterdir())


def test_what_cannot_be_read_ends_with_three(call, tmp_path):
    bad = tmp_path / "bad.safetensors"
    bad.write_bytes(b"\xff" * 8 + b"{}")
    for target in (tmp_path / "absent.safetensors", bad):
        code, out, err = call("audit", target)
        assert code == 3
        assert str(target) in err
        assert out == ""


def test_not_finite_is_a_row_not_a_failure(call, tmp_path):
    weights = {"a.weight": torch.randn(30, 20), "b.weight": torch.randn(30, 20)}
    weights["a.weight"][3, 4] = float("nan")
    save_file(weights, tmp_path / "m.safetensors")
    code, out, _ = call("audit", tmp_path / "m.safetensors")
    assert code == 0
    assert "1 NaN and 0 Inf, the first at row 3, column 4" in out
    assert len(tw.Audit.load("m.audit")) == 1


def test_show_prints_converts_and_explains(call, model):
    call("audit", model)
    _, table, _ = call("show", "tiny.audit")
    assert "model.layers.2.mlp.up_proj" in table
    _, one, _ = call("show", "tiny.audit", "--layer", "model.layers.2.mlp.up_proj")
    assert "Squared Frobenius norm over squared spectral norm." in one
    _, left, _ = call("show", "tiny.audit", "--unmeasured")
    assert left.startswith("model.norm")
    call("show", "tiny.audit", "-o", "y.md")
    assert "model.layers.2.mlp.up_proj" in Path("y.md").read_text()
    code, _, err = call("show", "tiny.audit", "--layer", "model.layers.2.mlp.up_prj")
    assert (code, "did you mean" in err) == (2, True)
    code, _, err = call("show", "none.audit")
    assert (code, "no such audit" in err) == (3, True)


def test_long_tables_are_cut_and_say_so(call, model):
    _, out, _ = call("audit", model, "--rows", "2")
    assert "… and 4 more; --rows 0 shows all" in out


def test_metrics_lists_formulas_and_sources(call):
    _, out, _ = call("metrics", "--json")
    described = {item["name"]: item for item in json.loads(out)}
    assert described["stable_rank"]["formula"] == "Σλ / λ_max"
    assert all(item["summary"] and item["formula"] and item["source"] for item in described.values())
    _, text, _ = call("metrics", "alpha")
    assert "Clauset" in text
    code, _, err = call("metrics", "alpa")
    assert (code, "did you mean" in err) == (2, True)


def test_doctor_checks_the_solver(call):
    code, out, _ = call("doctor", "--json")
    checks = {item["name"]: item for item in json.loads(out)}
    assert code == 0
    assert checks["solver"]["ok"]


def test_a_broken_cache_folder_is_said_and_harmless(call, model, tmp_path):
    (tmp_path / "file").write_text("not a folder")
    code, out, _ = call("audit", model, "--cache-dir", tmp_path / "file")
    assert code == 0
    assert "the cache could not be written" in out


def test_no_cache_keeps_nothing(call, model, tmp_path, monkeypatch):
    monkeypatch.setenv("TAILWISE_CACHE", str(tmp_path / "unused"))
    call("audit", model, "--no-cache")
    assert not (tmp_path / "unused").exists()


def _shell(*arguments: object, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailwise", *map(str, arguments)]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **environment}, capture_output=True, text=True, check=False
    )


def test_the_module_runs_quietly_without_a_terminal(model, tmp_path):
    done = _shell("audit", model, "-o", "x.csv", cwd=tmp_path, NO_COLOR="1")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_help_imports_nothing_heavy(tmp_path):
    probe = "import sys; sys.argv=['tailwise','audit','--help']\nfrom tailwise.cli.main import run\ntry: run()\n"
    probe += "except SystemExit: pass\n"
    probe += "heavy = {'torch','numpy','scipy','pyarrow','huggingface_hub'} & set(sys.modules); assert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", probe], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_reader_that_closes_early_is_no_error(model, tmp_path):
    command = f"{sys.executable} -m tailwise metrics | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr


@pytest.mark.parametrize(
    ("file", "name"),
    [("mine/model.safetensors", "mine-model"), ("mine/Mine.Q4_1.safetensors", "Mine.Q4_1"), ("mine", "mine")],
)
def test_an_audit_is_named_after_the_model_and_not_after_what_all_files_are_called(
    command_line, tmp_path, monkeypatch, file, name
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    path = tmp_path / file if "." in file else tmp_path / file / "model.safetensors"
    save_file({"up.weight": torch.randn(64, 60, generator=torch.Generator().manual_seed(0))}, path)
    assert command_line("audit", file, "--metrics", "stable_rank")[0] == 0
    assert [one.name for one in tmp_path.glob("*.audit")] == [f"{name}.audit"]


@pytest.mark.parametrize("command", [["check", "--expect", "gate.toml"], ["compare", "sound.audit"], ["diagnose"]])
def test_an_archive_whose_directory_is_damaged_is_one_message(call, command):
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("net/data.pkl", b"x" * 100)
    Path("bad.pt").write_bytes(archive.getvalue().replace(b"PK\x01\x02", bytes(4)))
    Path("gate.toml").write_text('expect = ["alpha < 9"]')
    tw.audit({"a.weight": np.random.default_rng(0).standard_normal((60, 50))}, use_cache=False).save("sound.audit")
    code, _, err = call(command[0], "bad.pt", *command[1:])
    assert code == 3
    assert "bad.pt: is no" in err
