"""A small adapter may name a matrix of any shape by its factors: what is not in the file is not made."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits import work
from tailwise.audits.prepare import prepare
from tailwise.checkpoints.formats import repeated
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError
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


@pytest.fixture
def little(monkeypatch):
    """A bound that a matrix of 100 × 100 keeps and one of 200 × 200 does not."""
    monkeypatch.setattr(repeated, "_MADE", 20_000)
    monkeypatch.setattr(repeated, "_OFTEN", 8)


def test_what_two_vectors_name_is_not_made(place, little):
    folder = place(200, 1)
    (row,) = tw.audit(folder, use_cache=False).rows
    assert row.measured
    (row,) = tw.audit(folder, use_cache=False, randomize=1).rows
    assert (row.status, "far more than the 400 of its factors" in row.reason) == ("UNREADABLE", True)
    (layer,) = tw.precision.study(folder, ("int8",), use_cache=False).layers
    assert (layer.status, "give the base model" in layer.reason) == ("UNREADABLE", True)
    with open_checkpoint(folder) as checkpoint, pytest.raises(UnreadableError, match="200 × 200 entries are far more"):
        checkpoint.read_rows("model.layers.0.self_attn.q_proj.weight", 0, 1)


def test_what_is_held_beside_it_is_made(place, little, tmp_path):
    assert tw.audit(place(200, 16), use_cache=False, randomize=1).rows[0].measured  # by the factors themselves
    (tmp_path / "base").mkdir()
    save_file({"model.layers.0.self_attn.q_proj.weight": torch.randn(200, 200)}, tmp_path / "base" / "m.safetensors")
    folder = place(200, 1)
    for mode in ("delta", "merged"):
        with open_checkpoint(folder, base=str(tmp_path / "base"), adapter_mode=mode) as checkpoint:
            assert checkpoint.read("model.layers.0.self_attn.q_proj.weight").shape == (200, 200)
    options = tw.precision.StudyOptions(base=str(tmp_path / "base"))
    (layer,) = tw.precision.study(folder, ("int8",), options=options, use_cache=False).layers
    assert layer.status == "OK" or layer.readings


@pytest.mark.parametrize("names", ["lora_unet_a.lora_{}.weight", "unet.a.lora.{}.weight"])
def test_the_same_in_the_namings_of_other_tools(tmp_path, little, names):
    factors = {names.format("down"): torch.randn(1, 200), names.format("up"): torch.randn(200, 1)}
    save_file(factors, tmp_path / "m.safetensors")
    assert [row.cols for row in tw.audit(tmp_path / "m.safetensors", use_cache=False).rows if row.measured] == [200]
    row = tw.audit(tmp_path / "m.safetensors", use_cache=False, randomize=1).rows[0]
    assert (row.status, "far more than the 400 of its factors" in row.reason) == ("UNREADABLE", True)


@pytest.mark.parametrize(
    ("shape", "rank", "beyond"),
    [((8192, 28672), 1, False), ((4096, 14336), 8, False), ((128256, 4096), 8, True), ((128256, 4096), 64, False),
     ((20_000, 20_000), 1, True), ((53248, 16384), 256, False), ((1 << 20, 1 << 20), 1, True)],
)  # fmt: skip
def test_the_bound_of_a_product_lets_the_layers_of_models_through(shape, rank, beyond):
    told = nullcontext() if not beyond else pytest.raises(UnreadableError, match="far more than")
    with told:
        repeated.check_product(shape, rank * sum(shape), "here")
