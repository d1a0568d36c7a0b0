"""Composite models by their text: the tower that text goes through is found, the others are left alone."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from families.kinds import FAMILIES, WINDOWS, built, loaded, saved
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.layer_matrices import as_matrices
from tailwise.models.evaluation.losses import window_losses
from tailwise.models.walking.hosts import load_host
from tailwise.models.walking.walk import blocks_of


@pytest.fixture
def llava(tmp_path):
    saved(FAMILIES["llava"], tmp_path / "model")
    np.save(tmp_path / "ids.npy", WINDOWS.flatten().numpy())
    return tmp_path


@pytest.mark.parametrize("name", ["llava", "gemma3", "qwen3_vl", "mistral3", "idefics3"])
def test_the_blocks_are_those_of_the_text(name):
    model = built(FAMILIES[name])
    inside = {id(module) for module in model.get_decoder().modules()}
    assert all(id(block.module) in inside for block in blocks_of(model))


def test_from_the_command_line_by_text_alone(llava, call):
    code, out, _ = call("plan", "prune", "model", "--sparsity", 0.5, "--allocator", "uniform", "--operator", "wanda",
                        "-o", "p.json")  # fmt: skip
    assert code == 0
    assert "the vision tower (12 matrices): --also vision takes it" in out
    given = ("--calibration", "ids.npy", "--window", 48, "--samples", 4)
    assert call("apply", "p.json", "model", "-o", "out", *given)[0] == 0
    before, after = (load_file(llava / name / "model.safetensors") for name in ("model", "out"))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {item.tensor for item in Plan.load(llava / "p.json")}
    assert not any("vision" in name for name in changed)


def test_its_perplexity_is_that_of_its_text(llava, call):
    code, out, _ = call("evaluate", "model", "--text", "ids.npy", "--window", 48, "--json")
    assert code == 0
    model = loaded(built(FAMILIES["llava"]), llava / "model")
    expected = float(np.exp(window_losses(model, WINDOWS).mean()))
    assert json.loads(out)["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_the_vision_tower_is_taken_where_it_is_asked_for(llava, call):
    assert call("plan", "prune", "model", "--sparsity", 0.5, "--allocator", "uniform", "--also", "vision",
                "-o", "p.json")[0] == 0  # fmt: skip
    assert call("apply", "p.json", "model", "-o", "out")[0] == 0
    W = load_file(llava / "out" / "model.safetensors")
    name = next(name for name in W if "vision" in name and name.endswith("q_proj.weight"))
    (matrix,) = as_matrices(W[name], name, {})
    assert int((matrix == 0).sum()) == matrix.numel() // 2


def test_what_a_tower_computes_by_itself_is_computed_by_the_tower(tmp_path):
    """Gemma's embeddings hold a factor that no file has; the outer model does not know of it."""
    model = saved(FAMILIES["paligemma"], tmp_path)
    with open_checkpoint(tmp_path) as checkpoint:
        host = load_host(checkpoint, tmp_path)
    own, theirs = dict(model.named_buffers()), dict(host.model.named_buffers())
    computed = [name for name in own if not theirs[name].is_meta and own[name].is_floating_point()]
    assert any(name.endswith("embed_scale") for name in computed)
    assert all(torch.allclose(own[name], theirs[name]) for name in computed)
