"""Models that their config does not describe."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import built, inputs_for, plan_for, saved

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.core.errors import TailwiseError, UnreadableError, UsageError
from tailwise.models.evaluation.evaluate import EvaluateOptions, evaluate
from tailwise.models.evaluation.loading import load_model
from tailwise.models.walking.load_pruned import load_pruned
from tailwise.models.walking.shapes import PRUNED_FILE

pytest.importorskip("transformers")
pytest.importorskip("torch_pruning")
WINDOWS = inputs_for("llama")["input_ids"]


def uneven(plan):
    amounts = {"attn": (0.0, 0.5, 0.0), "mlp": (0.0, 1 / 3, 0.5)}
    kinds = [(d, d.role.partition("_")[0]) for d in plan]
    return replace(plan, decisions=tuple(d.but(sparsity=amounts[kind][d.block]) for d, kind in kinds))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A Llama in bfloat16, and what uneven amounts make of it."""
    place = tmp_path_factory.mktemp("pruned")
    source = saved("llama", place / "model", dtype=torch.bfloat16)
    apply(uneven(plan_for(source, operator="structured")), source, place / "out")
    return source, place / "out"


@pytest.fixture(scope="module")
def low_rank(tmp_path_factory):
    """A model whose matrices have a rank of 6 at most, its plan of that rank, and both in factors."""
    place = tmp_path_factory.mktemp("low_rank")
    model = built("llama")
    with torch.no_grad():
        for name, value in model.named_parameters():
            if "proj" in name:
                U, sigma, Vh = torch.linalg.svd(value, full_matrices=False)
                value.copy_((U[:, :6] * sigma[:6]) @ Vh[:6])
    model.save_pretrained(place / "model")
    plan = plan_for(place / "model", operator="low_rank")
    decisions = tuple(d.but(rank=6, sparsity=1 - 6 * sum(d.shape) / d.n_params) for d in plan)
    return model, replace(plan, decisions=decisions), place / "model"


def logits(model):
    with torch.no_grad():
        return model(input_ids=WINDOWS).logits


def test_uneven_widths_load_with_their_own_sizes(folders):
    model = load_pruned(folders[1])
    layers = model.model.layers
    assert [layer.mlp.up_proj.out_features for layer in layers] == [48, 32, 24]
    assert [layer.self_attn.q_proj.out_features for layer in layers] == [32, 16, 32]
    assert {value.dtype for value in model.parameters()} == {torch.bfloat16}
    assert torch.isfinite(logits(model)).all()


def test_what_is_loaded_is_what_was_written(folders):
    found = load_pruned(folders[1]).state_dict()
    with open_checkpoint(folders[1]) as written:
        assert all(torch.equal(found[name], written.read(name)) for name in written.tensors)


def test_an_uneven_model_generates_with_a_cache_as_without(folders):
    model = load_pruned(folders[1], dtype="float32")
    given = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0, "attention_mask": torch.ones(2, 6).long()}
    cached, plain = (model.generate(WINDOWS[:2, :6], use_cache=use, **given) for use in (True, False))
    assert cached.shape == (2, 14)
    assert torch.equal(cached, plain)


def test_evaluate_loads_and_scores_such_a_folder(folders):
    found = load_model(folders[1])
    assert {value.dtype for value in found.module.parameters()} == {torch.float32}
    scores = evaluate(folders[1], text=WINDOWS.flatten(), options=EvaluateOptions(window=24))
    dense = evaluate(folders[0], text=WINDOWS.flatten(), options=EvaluateOptions(window=24))
    assert scores.facts.parameters < dense.facts.parameters


def test_what_was_cut_can_be_calibrated_and_pruned_further(folders, tmp_path):
    _, cut = folders
    done = apply(plan_for(cut, operator="wanda"), cut, tmp_path / "out", options=ApplyOptions(calibration=WINDOWS))
    assert done.achieved == pytest.approx(0.5, abs=0.02)
    assert torch.isfinite(logits(load_pruned(tmp_path / "out", dtype="float32"))).all()


@pytest.mark.parametrize(("operator", "factored"), [("structured", False), ("low_rank", True)])
def test_what_was_cut_cannot_be_cut_again(folders, tmp_path, operator, factored):
    _, cut = folders
    with pytest.raises(UsageError, match="were cut before"):
        apply(plan_for(cut, operator=operator), cut, tmp_path / "out", options=ApplyOptions(factored=factored))


def test_tied_embeddings_stay_tied(tmp_path):
    folder = saved("gpt2", tmp_path / "model")
    apply(plan_for(folder, operator="structured"), folder, tmp_path / "out")
    model = load_pruned(tmp_path / "out")
    assert model.lm_head.weight is model.transformer.wte.weight


def test_an_ordinary_folder_loads_as_transformers_does(tmp_path):
    folder = saved("llama", tmp_path / "model")
    torch.testing.assert_close(logits(load_pruned(folder)), logits(built("llama")), rtol=1e-5, atol=1e-6)


def test_it_is_one_of_the_public_names():
    assert tw.load_pruned is load_pruned


# Factors


@pytest.mark.parametrize("calibrated", [False, True])
def test_factors_of_a_matrix_of_that_rank_leave_the_outputs(low_rank, tmp_path, calibrated):
    model, plan, folder = low_rank
    options = ApplyOptions(factored=True, calibration=WINDOWS if calibrated else None)
    done = apply(plan, folder, tmp_path / "out", options=options)
    found = load_pruned(tmp_path / "out")
    torch.testing.assert_close(logits(found), logits(model), rtol=1e-3, atol=1e-3)
    before, after = (sum(value.numel() for value in one.parameters()) for one in (model, found))
    assert before - after == round(sum(item.removed for item in done.tensors))
    assert done.achieved == pytest.approx(plan.sparsity)
    sizes = [(place / "model.safetensors").stat().st_size for place in (folder, tmp_path / "out")]
    assert sizes[0] - sizes[1] == pytest.approx(4 * (before - after), rel=0.05)


@pytest.mark.parametrize("kind", ["gpt2", "qwen2", "opt", "gptneox"])
def test_factored_layers_keep_their_bias(tmp_path, kind):
    folder = saved(kind, tmp_path / "model")
    plan = plan_for(folder, operator="low_rank")
    for factored in (False, True):
        apply(plan, folder, tmp_path / str(factored), options=ApplyOptions(factored=factored))
    dense, factors = (load_pruned(tmp_path / name) for name in ("False", "True"))
    torch.testing.assert_close(logits(factors), logits(dense), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_model_that_is_stored_under_other_names_is_factored_under_its_own(tmp_path, calibrated):
    folder, inputs = saved("vit", tmp_path / "model"), inputs_for("vit")
    plan = plan_for(folder, operator="low_rank")
    for factored in (False, True):
        options = ApplyOptions(factored=factored, calibration=inputs if calibrated else None)
        apply(plan, folder, tmp_path / str(factored), options=options)
    dense, factors = (load_pruned(tmp_path / name, dtype="float32") for name in ("False", "True"))
    with torch.no_grad():
        torch.testing.assert_close(factors(**inputs).logits, dense(**inputs).logits, rtol=1e-3, atol=1e-3)


def test_factored_layers_of_a_t5_compute_though_it_asks_for_their_weight(tmp_path):
    folder, inputs = saved("t5", tmp_path / "model"), inputs_for("t5")
    plan = plan_for(folder, operator="low_rank")
    apply(plan, folder, tmp_path / "out", options=ApplyOptions(factored=True))
    with torch.no_grad():
        found = load_pruned(tmp_path / "out")(**inputs, decoder_input_ids=inputs["input_ids"]).logits
    assert torch.isfinite(found).all()


def test_a_head_that_is_not_there_is_told(tmp_path):
    source = saved("gptneox", tmp_path / "model")
    folder = apply(plan_for(source, operator="low_rank"), source, tmp_path / "out",
                   options=ApplyOptions(factored=True)).output  # fmt: skip
    tensors = load_file(folder / "model.safetensors")
    del tensors["embed_out.weight"]
    save_file(tensors, folder / "model.safetensors")
    with pytest.raises(UnreadableError, match=r"lm_head\.weight is not among its weights"):
        load_pruned(folder)


def test_the_product_in_one_matrix_is_the_default(low_rank, tmp_path):
    _, plan, folder = low_rank
    apply(plan, folder, tmp_path / "out")
    assert not (tmp_path / "out" / PRUNED_FILE).exists()


def test_ranks_that_save_nothing_are_refused(low_rank, tmp_path):
    _, plan, folder = low_rank
    wrong = replace(plan, decisions=(plan.decisions[0].but(rank=30), *plan.decisions[1:]))
    with pytest.raises(UsageError, match="factors of rank 30 are as large as the matrix"):
        apply(wrong, folder, tmp_path / "out", options=ApplyOptions(factored=True))


# What cannot be read


def copy_of(folder, target):
    target.mkdir()
    for path in folder.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    return target


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no json", "does not say how the layers were cut"),
        ('{"tailwise_pruned": 9}', "this tailwise reads 1"),
        ('{"tailwise_pruned": 1, "layers": {"nowhere": {"inputs": 1, "outputs": 1}}, "heads": {}}', "does not fit"),
        ('{"tailwise_pruned": 1, "layers": {}, "heads": {}}', "do not have the shapes"),
    ],
)
def test_a_broken_description_is_told(folders, tmp_path, text, said):
    folder = copy_of(folders[1], tmp_path / "copy")
    (folder / PRUNED_FILE).write_text(text)
    with pytest.raises(UnreadableError, match=said):
        load_pruned(folder)


def test_a_layer_that_is_no_linear_layer_is_told(folders, tmp_path):
    folder = copy_of(folders[1], tmp_path / "copy")
    found = json.loads((folder / PRUNED_FILE).read_text())
    found["layers"]["model.norm"] = {"inputs": 3, "outputs": 3}
    (folder / PRUNED_FILE).write_text(json.dumps(found))
    with pytest.raises(UnreadableError, match="is no linear layer"):
        load_pruned(folder)


def test_bad_arguments_are_told(folders, tmp_path):
    with pytest.raises(UsageError, match="no dtype to compute in"):
        load_pruned(folders[1], dtype="int3")
    with pytest.raises(UnreadableError, match="no such folder"):
        load_pruned(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "change",
    [lambda d: first(d["heads"]).update(groups=0), lambda d: first(d["heads"]).update(size="8"),
     lambda d: first(d["heads"]).update(queries=3, groups=2), lambda d: first(d["layers"]).update(inputs=-1),
     lambda d: first(d["layers"]).update(outputs=10**30), lambda d: first(d["layers"]).update(outputs=1.5),
     lambda d: first(d["layers"]).update(rank=-2), lambda d: d.update(heads=[])],
)  # fmt: skip
def test_sizes_that_no_layer_has_are_one_message(folders, tmp_path, change):
    place = shutil.copytree(folders[1], tmp_path / "m")
    document = json.loads((place / PRUNED_FILE).read_text())
    change(document)
    (place / PRUNED_FILE).write_text(json.dumps(document))
    with pytest.raises(UnreadableError, match="does not say how the layers were cut"):
        load_pruned(place)


@pytest.mark.parametrize("text", ["{", "[1]", "[" * 100_000, '{"cache_implementation": "zz"}'])
def test_a_damaged_generation_config_is_one_message(folders, tmp_path, text):
    place = shutil.copytree(folders[1], tmp_path / "m")
    (place / "generation_config.json").write_text(text)
    with pytest.raises(TailwiseError):
        load_pruned(place)


def first(named):
    return next(iter(named.values()))
