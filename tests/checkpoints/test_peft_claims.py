"""A small adapter may name a matrix of any shape by its factors: what is not in the file is not made."""

import json

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits import work
from tailwise.audits.prepare import prepare
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics import facts


@pytest.fixture
def place(tmp_path):
    def made(side, rank, **more):
        name = "base_model.model.model.layers.0.self_attn.q_proj"
        tensors = {f"{name}.lora_A.weight": torch.randn(rank, side), f"{name}.lora_B.weight": torch.randn(side, rank)}
        if more.get("use_dora"):
            tensors[f"{name}.lora_magnitude_vector"] = torch.ones(side)
        save_file(tensors, tmp_path / "adapter_model.safetensors")
        said = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"], **more}
        (tmp_path / "adapter_config.json").write_text(json.dumps(said))
        return tmp_path

    return made


def test_no_noise_is_made_of_a_shape_that_no_layer_has(place, monkeypatch):
    monkeypatch.setattr(facts, "gaussian_spectra", lambda *_: pytest.fail("noise was made"))
    (row,) = tw.audit(place(50_000, 16), use_cache=False).rows
    assert row.measured
    assert "not compared with noise" in row.reason
    assert row.metrics["alpha_z"] is None
    assert row.metrics["stable_rank"] > 1


def test_its_memory_is_that_of_its_factors(place):
    with open_checkpoint(place(30_000, 32)) as checkpoint:
        assert prepare(checkpoint, Recipe()).memory(1) < 500 << 20


def test_what_would_have_to_be_made_is_one_row(place, monkeypatch):
    monkeypatch.setattr(work, "LARGEST_NOISE", 64)
    (row,) = tw.audit(place(100, 16), randomize=1, use_cache=False).rows
    assert row.status == "UNREADABLE"
    assert "more than the file holds" in row.reason


def test_usual_adapters_are_compared_with_noise(place):
    (row,) = tw.audit(place(100, 16), randomize=1, use_cache=False).rows
    assert row.measured
    assert "noise" not in row.reason
    assert row.metrics["alpha_baseline"] > 0
