"""Composite models by their text: the tower that text goes through is found, the others are left alone."""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from families.kinds import FAMILIES, WINDOWS, built, loaded, saved
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.plans.plan import Plan
from tailwise.compression.treating.treated import as_matrices
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


PROCESSORS = {
    "llava": {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32},
              "crop_size": {"height": 32, "width": 32}},
    "gemma3": {"image_processor_type": "Gemma3ImageProcessor", "size": {"height": 32, "width": 32}},
    "mistral3": {"image_processor_type": "PixtralImageProcessor", "patch_size": 8, "size": {"longest_edge": 32}},
    "qwen2_vl": {"image_processor_type": "Qwen2VLImageProcessor", "patch_size": 8, "merge_size": 2,
                 "temporal_patch_size": 2, "size": {"shortest_edge": 256, "longest_edge": 2048}},
}  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image

    (tmp_path / "images" / "of_a_kind").mkdir(parents=True)
    draw = np.random.default_rng(0)
    for index, size in enumerate([(40, 50), (64, 32), (48, 48)]):
        shown = Image.fromarray(draw.integers(0, 255, (*size, 3), dtype=np.uint8))
        shown.save(tmp_path / "images" / ("of_a_kind" if index else ".") / f"{index}.png")
    return tmp_path / "images"


def composite(name, folder):
    model = saved(FAMILIES[name], folder / "model")
    (folder / "model" / "preprocessor_config.json").write_text(json.dumps(PROCESSORS[name]))
    return model


def plan_of(call, *more):
    return call("plan", "prune", "model", "--sparsity", 0.5, "--allocator", "uniform", "--operator", "wanda",
                "--also", "vision", *more, "-o", "p.json")  # fmt: skip


def norms_by_hooks(model, name, folder, files):
    """Layer of the vision tower → sqrt(Σ x²) of its inputs, as the model's own processor and code have it."""
    from PIL import Image
    from transformers import AutoImageProcessor

    found, handles = {}, []
    for layer, module in model.named_modules():
        if type(module).__name__ == "Linear":

            def hook(_, given, layer=layer):
                x = given[0].reshape(-1, given[0].shape[-1]).double()
                found[layer] = found.get(layer, 0) + x.square().sum(dim=0)

            handles.append(module.register_forward_pre_hook(hook))
    ready = AutoImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        for file in files:
            given = ready(images=[Image.open(file).convert("RGB")], return_tensors="pt")
            given.pop("num_crops", None)
            with contextlib.suppress(RuntimeError):  # of the tiny projector of Gemma 3, which comes after the tower
                model.get_image_features(**given)
    for handle in handles:
        handle.remove()
    return {layer: total.sqrt() for layer, total in found.items()}


@pytest.mark.parametrize("name", list(PROCESSORS))
def test_the_vision_tower_is_calibrated_by_images(name, tmp_path, monkeypatch, call, pictures):
    monkeypatch.chdir(tmp_path)
    model = composite(name, tmp_path)
    np.save(tmp_path / "ids.npy", WINDOWS.flatten().numpy())
    assert plan_of(call)[0] == 0
    code, out, err = call("apply", "p.json", "model", "-o", "out", "--calibration", "ids.npy", "--window", 48,
                          "--samples", 4, "--images", "images")  # fmt: skip
    assert code == 0, err
    assert "no input reached it" not in out
    files = sorted(pictures.rglob("*.png"))
    after = loaded(model, tmp_path / "out")
    weights, own = dict(after.named_modules()), dict(model.named_modules())
    norms = norms_by_hooks(model, name, tmp_path / "model", files)
    first = [layer for layer in norms if ".0." in layer and ("vision" in layer or "visual" in layer)]
    checked = 0
    for layer in first:  # of the first block, which sees what the dense model sees
        W, V = own[layer].weight.data, weights[layer].weight.data
        if torch.equal(W, V) or not layer.endswith(("q_proj", "k_proj", "v_proj", "qkv")):
            continue
        order = (W.double().abs() * norms[layer]).argsort(dim=1)
        mask = torch.ones_like(W, dtype=torch.bool).scatter(1, order[:, : W.shape[1] // 2], False)
        assert torch.equal(V, W * mask)
        checked += 1
    assert checked
    plan = Plan.load(tmp_path / "p.json")
    stored = [load_file(tmp_path / at / "model.safetensors") for at in ("model", "out")]
    assert {key for key in stored[0] if not torch.equal(stored[0][key], stored[1][key])} == {d.tensor for d in plan}


def test_the_vision_tower_alone_needs_no_text(tmp_path, monkeypatch, call, pictures):
    monkeypatch.chdir(tmp_path)
    composite("llava", tmp_path)
    assert plan_of(call, "--layers", "vision")[0] == 0
    assert call("apply", "p.json", "model", "-o", "out", "--images", "images")[0] == 0
    card = (tmp_path / "out" / "README.md").read_text()
    assert "images: images" in card
    assert "image_count: 3" in card
    assert plan_of(call)[0] == 0
    code, _, err = call("apply", "p.json", "model", "-o", "both", "--images", "images")
    assert code == 2
    assert "there is no calibration text beside the images" in err


def test_what_is_missing_for_images_is_told_in_one_error(tmp_path, monkeypatch, call, pictures):
    monkeypatch.chdir(tmp_path)
    composite("llava", tmp_path)
    np.save(tmp_path / "ids.npy", WINDOWS.flatten().numpy())
    text = ("--calibration", "ids.npy", "--window", 48, "--samples", 4)
    assert plan_of(call)[0] == 0
    code, _, err = call("apply", "p.json", "model", "-o", "out", *text)
    assert code == 2
    assert "of the plan's see images" in err
    assert "apply with --images DIR, or plan without --also vision" in err
    (tmp_path / "empty").mkdir()
    code, _, err = call("apply", "p.json", "model", "-o", "out", *text, "--images", "empty")
    assert (code, "there are no images in it" in err) == (2, True)
    (tmp_path / "model" / "preprocessor_config.json").unlink()
    code, _, err = call("apply", "p.json", "model", "-o", "out", *text, "--images", "images")
    assert code == 2
    assert "nothing says how its images are made ready" in err
    assert not (tmp_path / "out").exists()


def test_images_that_nothing_looks_at_are_told(tmp_path, monkeypatch, call, pictures):
    monkeypatch.chdir(tmp_path)
    composite("llava", tmp_path)
    np.save(tmp_path / "ids.npy", WINDOWS.flatten().numpy())
    text = ("--calibration", "ids.npy", "--window", 48, "--samples", 4, "--images", "images")
    assert call("plan", "prune", "model", "--sparsity", 0.5, "--allocator", "uniform", "--operator", "wanda",
                "-o", "p.json")[0] == 0  # fmt: skip
    code, out, _ = call("apply", "p.json", "model", "-o", "out", *text)
    assert code == 0
    assert "leaves the tower that reads images alone: the images were not used" in out.replace("\n", " ")
    assert call("plan", "prune", "model", "--sparsity", 0.5, "--allocator", "uniform", "-o", "m.json")[0] == 0
    assert call("apply", "m.json", "model", "-o", "other", "--images", "images")[0] == 2
    saved(FAMILIES["llama"], tmp_path / "llama")
    assert call("plan", "prune", "llama", "--sparsity", 0.5, "--allocator", "uniform", "--operator", "wanda",
                "-o", "l.json")[0] == 0  # fmt: skip
    code, _, err = call("apply", "l.json", "llama", "-o", "other", *text)
    assert (code, "it reads no images beside text" in err) == (2, True)
