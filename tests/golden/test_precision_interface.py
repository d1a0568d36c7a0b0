"""The documented interface of the precision study, to the letter: arguments, files and columns."""

from __future__ import annotations

import csv
import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "analyze_precision_alpha_hill.py"
FACTS = ["layer_name", "category", "out_features", "in_features", "numel"]
PER_PRECISION = ["alpha", "k_used", "n_eigs", "method"]
SUMMARY = ["precision", "count", "mean", "std", "min", "median", "max", "q25", "q75"]


@pytest.fixture
def script(monkeypatch, capfd):
    """Run the script in this process with the given arguments; gives (exit code, stderr)."""
    spec = importlib.util.spec_from_file_location("analyze_precision_alpha_hill", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run(*arguments: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *arguments])
        with pytest.raises(SystemExit) as end:
            module.main()
        return int(end.value.code or 0), capfd.readouterr().err

    return run


def _rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        return list(reader.fieldnames or ()), list(reader)


def test_the_documented_command_gives_exactly_these_files_and_columns(script, pycode, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    # Two blocks: the pictures of 58 layers take longer than everything else.
    code, _ = script("--model", str(pycode), "--filter-layers", r"layers\.[01]\.")
    assert code == 0
    output = tmp_path / "results" / "precision_analysis"
    columns, rows = _rows(output / "precision_alpha_hill_results.csv")
    assert columns == FACTS + [f"{part}_{p}" for p in ("fp32", "fp16", "bf16") for part in PER_PRECISION]
    assert len(rows) == 14
    assert rows[0]["category"] in {"attn_q", "mlp_gate", "mlp_down", "attn_k"}
    for row in rows:
        assert int(row["numel"]) == int(row["out_features"]) * int(row["in_features"])
        assert 1 < float(row["alpha_fp32"]) < 10
        assert int(row["k_used_fp32"]) == max(2, int(0.1 * int(row["n_eigs_fp32"])))
        assert int(row["n_eigs_fp32"]) == min(int(row["out_features"]), int(row["in_features"]))
        assert row["alpha_bf16"] == row["alpha_fp32"]  # stored in bf16
    columns, rows = _rows(output / "precision_summary_statistics.csv")
    assert columns == SUMMARY
    assert [row["precision"] for row in rows] == ["fp32", "fp16", "bf16"]
    assert [row["count"] for row in rows] == ["14"] * 3

    found = sorted(str(path.relative_to(output)) for path in output.rglob("*") if path.is_file())
    categories = ("attn_k", "attn_o", "attn_q", "attn_v", "mlp_down", "mlp_gate", "mlp_up")
    expected = [
        "plots/alpha_distribution_by_precision.png",
        *(f"plots/category_{name}.png" for name in categories),
        "plots/combined_batch_1.png",
        "plots/combined_batch_2.png",
        "precision_alpha_hill_results.csv",
        "precision_sensitivity.csv",
        "precision_summary_statistics.csv",
    ]
    single = [name for name in found if name.startswith("plots/individual_layers/")]
    assert sorted(set(found) - set(single)) == expected
    assert len(single) == 14
    assert all(re.fullmatch(r"plots/individual_layers/layer_\d{3}_[\w.-]+\.png", name) for name in single)


def test_every_documented_argument_is_taken(script, stories, tmp_path) -> None:
    output = tmp_path / "out"
    code, _ = script(
        "--model", str(stories), "--device", "cpu", "--load-dtype", "bf16", "--precisions", "fp64,fp32,fp16,bf16",
        "--output-dir", str(output), "--k-frac", "0.2", "--filter-layers", r"q_proj", "--plot-format", "svg",
        "--max-layers-per-plot", "0", "--log-level", "ERROR",
    )  # fmt: skip
    assert code == 0
    columns, rows = _rows(output / "precision_alpha_hill_results.csv")
    assert [name for name in columns if name.startswith("alpha_")] == [
        f"alpha_{name}" for name in ("fp64", "fp32", "fp16", "bf16")
    ]
    assert all(int(row["k_used_fp64"]) == int(0.2 * int(row["n_eigs_fp64"])) for row in rows)
    assert [path.name for path in sorted((output / "plots").glob("combined_batch_*"))] == ["combined_batch_1.svg"]
    assert (output / "plots" / "category_attn_q.svg").is_file()


def test_the_script_writes_which_layers_are_sensitive(script, stories, tmp_path) -> None:
    output = tmp_path / "out"
    code, _ = script("--model", str(stories), "--output-dir", str(output), "--filter-layers", r"layers\.[01]\.",
                     "--precisions", "bf16,int2", "--bound", "alpha_shift=0.05", "--plot-format", "svg")  # fmt: skip
    assert code == 0
    _, rows = _rows(output / "precision_sensitivity.csv")
    marked = {row["layer_name"]: row["sensitive"] == "True" for row in rows}
    assert marked == {row["layer_name"]: abs(float(row["largest_shift"])) > 0.05 for row in rows}
    assert any(marked.values())
    # Of a layer that has no tail in int2 the shift in bf16 is the largest there is.
    assert sum(row["in_format"] == "int2" for row in rows) >= len(rows) - 1


@pytest.mark.parametrize(("arguments", "said"), [
    (("--precisions", "fp32,fp12"), "fp12"),
    (("--filter-layers", "no_such_layer"), "none of the"),
    (("--filter-layers", "("), "regular expression"),
    (("--k-frac", "0"), "k_frac"),
    (("--device", "cuda:9"), "CUDA"),
    (("--precisions", ","), "no format"),
])  # fmt: skip
def test_a_wrong_argument_is_one_message(script, stories, tmp_path, arguments, said) -> None:
    if said == "CUDA" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    code, stderr = script("--model", str(stories), "--output-dir", str(tmp_path / "out"), *arguments)
    assert code == 2
    assert said in stderr
    assert not (tmp_path / "out").exists()


def test_a_model_that_is_not_there_is_one_message(script, tmp_path) -> None:
    code, stderr = script("--model", str(tmp_path / "nothing"), "--output-dir", str(tmp_path / "out"))
    assert code == 3
    assert "nothing" in stderr


def test_a_degenerate_tail_is_a_row_with_its_status(script, tmp_path) -> None:
    weights = {"layers.0.mlp.up_proj.weight": torch.eye(64), "layers.1.mlp.up_proj.weight": torch.randn(64, 64)}
    save_file(weights, tmp_path / "model.safetensors")
    code, _ = script("--model", str(tmp_path / "model.safetensors"), "--output-dir", str(tmp_path / "out"))
    assert code == 0
    _, rows = _rows(tmp_path / "out" / "precision_alpha_hill_results.csv")
    assert rows[0]["alpha_fp32"] == ""
    assert rows[0]["method_fp32"] == "DEGENERATE"
    assert float(rows[1]["alpha_fp32"]) > 1
    _, summary = _rows(tmp_path / "out" / "precision_summary_statistics.csv")
    assert summary[0]["count"] == "1"


def test_the_formats_are_listed_without_a_model(capfd, monkeypatch) -> None:
    from tailwise.cli.main import run

    monkeypatch.setattr(sys, "argv", ["tailwise", "precision", "--precisions", " LIST"])
    with pytest.raises(SystemExit) as end:
        run()
    assert not end.value.code
    assert "nvfp4" in capfd.readouterr().out


def test_a_model_with_nothing_measurable_writes_tables_with_the_status(tmp_path, capfd, monkeypatch) -> None:
    from tailwise.cli.main import run

    save_file({"layers.0.mlp.up_proj.weight": torch.full((64, 64), float("nan"))}, tmp_path / "model.safetensors")
    given = ["tailwise", "precision", str(tmp_path / "model.safetensors"), "-o", str(tmp_path / "out")]
    monkeypatch.setattr(sys, "argv", given)
    with pytest.raises(SystemExit) as end:
        run()
    assert end.value.code == 3
    assert "4096 NaN" in capfd.readouterr().out
    _, rows = _rows(tmp_path / "out" / "precision_alpha_hill_results.csv")
    assert rows[0]["method_fp16"] == "NOT_FINITE"


def test_a_file_in_the_way_of_the_pictures_is_said_before_the_work(script, stories, tmp_path) -> None:
    (tmp_path / "plots").touch()
    code, stderr = script("--model", str(stories), "--output-dir", str(tmp_path))
    assert code == 2
    assert "in the way" in stderr
    assert not (tmp_path / "precision_alpha_hill_results.csv").exists()
