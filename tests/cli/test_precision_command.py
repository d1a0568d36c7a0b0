"""`tailwise precision` where a layer fails: the others are written, the summary counts it, and the exit code is 3."""

from __future__ import annotations

import csv

import pytest
import torch
from safetensors.torch import save_file
from typer.testing import CliRunner

from tailwise.audits.precision.study import PrecisionStudy
from tailwise.cli.main import app
from tailwise.number_formats.scaled import ScaledFormat

SPOILED = 88  # columns of the layer that fails


@pytest.fixture
def model(tmp_path):
    """Three layers of two blocks, one of them of another shape, and one without a tail."""
    generator = torch.Generator().manual_seed(0)
    names = {
        "model.layers.0.mlp.up_proj": 64,
        "model.layers.1.mlp.up_proj": 64,
        "model.layers.1.mlp.gate_proj": SPOILED,
    }
    weights = {f"{name}.weight": torch.randn(96, cols, generator=generator) for name, cols in names.items()}
    weights["model.layers.0.mlp.gate_proj.weight"] = torch.eye(96, 72)
    path = tmp_path / "model.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def failing(monkeypatch):
    """int4 fails for one layer, by a fault of its own."""
    quantize = ScaledFormat.quantize

    def spoiled(self, block, reach=None):
        if self.name == "int4" and block.shape[-1] == SPOILED:
            raise RuntimeError("a fault of the format")
        return quantize(self, block, reach)

    monkeypatch.setattr(ScaledFormat, "quantize", spoiled)


def call(model, folder, *more):
    return CliRunner().invoke(
        app,
        ["precision", str(model), "--precisions", "int8,int4", "--no-plots", "--no-cache", "-o", str(folder), *more],
    )


def test_a_layer_that_fails_in_one_format_is_counted_and_the_command_ends_with_3(model, failing, tmp_path):
    done = call(model, tmp_path / "out", "--basic")
    assert done.exit_code == 3, done.output
    said = " ".join(done.output.split())
    assert "1 of 4 layers failed, in some format or in all: medians and predictions are over the others" in said
    assert "model.layers.1.mlp.gate_proj in int4: " in said
    assert "a fault of the format" in said
    with (tmp_path / "out" / "precision_alpha_hill_results.csv").open() as file:
        rows = {row["layer_name"]: row for row in csv.DictReader(file)}
    spoiled = rows["model.layers.1.mlp.gate_proj"]
    assert (spoiled["alpha_int4"], spoiled["method_int4"]) == ("", "FAILED")
    assert float(spoiled["alpha_int8"]) > 1
    assert all(row["alpha_int4"] for name, row in rows.items() if "up_proj" in name)


def test_the_study_of_a_failed_layer_is_saved_with_it_and_json_is_whole(model, failing, tmp_path):
    done = call(model, tmp_path / "out", "--json")
    assert done.exit_code == 3
    found = PrecisionStudy.load(tmp_path / "out" / "study.json")
    assert found.failed == ("model.layers.1.mlp.gate_proj",)


def test_a_model_without_a_fault_ends_with_0_and_says_which_layers_no_correlation_has(model, tmp_path):
    done = call(model, tmp_path / "out", "--basic")
    assert done.exit_code == 0, done.output
    said = " ".join(done.output.split())
    assert "Of 4 layers inside blocks 1 is left out, without an α: model.layers.0.mlp.gate_proj." in said
