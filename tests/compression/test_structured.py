"""Heads, neurons and blocks taken out of models."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from made_plans import audit_of, row
from safetensors.torch import save_file
from tiny_models import built, inputs_for, plan_for, saved

from tailwise.checkpoints.checkpoint import Dims
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune
from tailwise.compression.making.request import Request
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.blocks_dropped import block_influence, least_influence, named_blocks, without_blocks
from tailwise.compression.shrinking.structured_groups import _counted
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.models.walking.load_pruned import load_pruned
from tailwise.models.walking.shapes import PRUNED_FILE
from tailwise.report.plan_view import plan_grid

pytest.importorskip("transformers")
pytest.importorskip("torch_pruning")

CAUSAL = ["llama", "gpt2", "opt", "qwen2", "gemma3"]
CALIBRATED = ApplyOptions(calibration=inputs_for("llama")["input_ids"])


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved("llama", tmp_path_factory.mktemp("llama"), max_shard_size="20KB")


@pytest.fixture(scope="module")
def plan(llama):
    return plan_for(llama, operator="structured")


def logits(model, kind="llama"):
    with torch.no_grad():
        return model(**inputs_for(kind)).logits


def transformers_loads(folder):
    import transformers

    model, facts = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(facts[name] for name in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    return model


def with_amounts(plan: Plan, amount) -> Plan:
    """`amount` gives the sparsity of each decision."""
    return replace(plan, decisions=tuple(d.but(sparsity=amount(d)) for d in plan))


def uneven(plan: Plan) -> Plan:
    """0, a quarter and a half of the neurons of the blocks; heads as they are."""
    return with_amounts(plan, lambda d: 0.25 * d.block if d.role.startswith("mlp") else 0.0)


# What is left computes the same


@pytest.mark.parametrize("kind", [*CAUSAL, "bert", "vit", "deit"])
def test_taking_out_heads_and_neurons_that_add_nothing_leaves_the_outputs(tmp_path, kind):
    model = built(kind)
    readers = ("o_proj", "down_proj", "out_proj", "fc2", "attn.c_proj", "mlp.c_proj", "output.dense")
    with torch.no_grad():
        for name, module in model.named_modules():
            if (
                name.endswith(readers)
                and ".layer" in f".{name}".replace(".h.", ".layer.")
                and hasattr(module, "weight")
            ):
                width = module.weight.shape[0 if type(module).__name__ == "Conv1D" else 1]
                axis = 0 if type(module).__name__ == "Conv1D" else 1
                module.weight.index_fill_(axis, torch.arange(width // 2), 0.0)
    dense = logits(model, kind)
    model.save_pretrained(tmp_path / "model")
    plan = plan_for(tmp_path / "model", operator="structured")
    apply(plan, tmp_path / "model", tmp_path / "out", options=ApplyOptions(calibration=inputs_for(kind)))
    smaller = load_pruned(tmp_path / "out")
    before, after = (sum(p.numel() for p in one.parameters()) for one in (model, smaller))
    assert before - after >= 0.49 * plan.n_params
    torch.testing.assert_close(logits(smaller, kind), dense, rtol=1e-3, atol=2e-4)


def test_the_weights_alone_find_what_is_zero_everywhere(tmp_path):
    model = built("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            for name in ("gate_proj", "up_proj"):
                getattr(layer.mlp, name).weight[1::2] = 0.0
            layer.mlp.down_proj.weight[:, 1::2] = 0.0
    model.save_pretrained(tmp_path / "model")
    plan = plan_for(tmp_path / "model", operator="structured")
    plan = with_amounts(plan, lambda d: 0.5 if d.role.startswith("mlp") else 0.0)
    apply(plan, tmp_path / "model", tmp_path / "out")
    torch.testing.assert_close(logits(transformers_loads(tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


# Sizes


def test_equal_widths_are_said_by_the_config_and_transformers_loads_them(llama, plan, tmp_path):
    done = apply(plan, llama, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"], config["num_key_value_heads"]) == (24, 2, 1)
    assert config["head_dim"] == 8
    assert not (tmp_path / "out" / PRUNED_FILE).exists()
    assert torch.isfinite(logits(transformers_loads(tmp_path / "out"))).all()
    assert done.smaller
    assert done.achieved == pytest.approx(0.5)


def test_the_files_get_smaller_by_what_was_taken_out(llama, plan, tmp_path):
    done = apply(plan, llama, tmp_path / "out")
    before, after = (
        sum(path.stat().st_size for path in folder.glob("*.safetensors")) for folder in (llama, tmp_path / "out")
    )
    removed = sum(item.removed for item in done.tensors)
    assert before - after == pytest.approx(4 * removed, rel=0.02)


def test_uneven_plans_are_made_equal_on_request(llama, plan, tmp_path):
    apply(uneven(plan), llama, tmp_path / "out", options=ApplyOptions(equal_widths=True))
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (config["intermediate_size"], config["num_attention_heads"]) == (32, 4)
    assert not (tmp_path / "out" / PRUNED_FILE).exists()


@pytest.mark.parametrize(("multiple", "width"), [(1, 34), (8, 32), (16, 32)])
def test_widths_are_a_multiple_of_what_is_asked(llama, plan, tmp_path, multiple, width):
    given = with_amounts(plan, lambda d: 0.3 if d.role.startswith("mlp") else 0.0)
    done = apply(given, llama, tmp_path / "out", options=ApplyOptions(multiple=multiple))
    assert json.loads((tmp_path / "out" / "config.json").read_text())["intermediate_size"] == width
    assert [item.achieved for item in done.tensors if "mlp" in item.tensor] == pytest.approx([1 - width / 48] * 9)


def test_only_heads_or_only_neurons_can_be_cut(llama, plan, tmp_path):
    for kind in ("attn", "mlp"):
        part = replace(plan, decisions=tuple(d for d in plan if d.role.startswith(kind)))
        apply(part, llama, tmp_path / kind)
        assert torch.isfinite(logits(transformers_loads(tmp_path / kind))).all()


def test_query_heads_go_one_by_one_where_all_share_one_key(tmp_path):
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, head_dim=8,
                                      num_key_value_heads=1, intermediate_size=48, vocab_size=96)  # fmt: skip
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    plan = plan_for(tmp_path / "model", operator="structured")
    apply(plan, tmp_path / "model", tmp_path / "out")
    found = json.loads((tmp_path / "out" / "config.json").read_text())
    assert (found["num_attention_heads"], found["num_key_value_heads"]) == (2, 1)
    assert torch.isfinite(logits(transformers_loads(tmp_path / "out"))).all()


def test_numbers_of_heads_that_the_config_refuses_are_left_to_load_pruned(tmp_path):
    folder = saved("llama", tmp_path / "model")
    heads = {"num_key_value_heads": 4}  # 3 of 4 do not divide the hidden size, which Llama's config asks for
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, **heads)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    plan = with_amounts(plan_for(folder, operator="structured"), lambda d: 0.25)
    done = apply(plan, folder, tmp_path / "out")
    assert "load it with tailwise.load_pruned" in " ".join(done.notes)
    assert torch.isfinite(logits(load_pruned(tmp_path / "out"))).all()


def test_what_calibration_says_keeps_the_outputs_nearer_than_chance(llama, plan, tmp_path):
    dense, lost = logits(load_pruned(llama)), []
    given = with_amounts(plan, lambda d: 0.5 if d.role.startswith("mlp") else 0.0)
    apply(given, llama, tmp_path / "out", options=CALIBRATED)
    lost.append(float((logits(load_pruned(tmp_path / "out")) - dense).square().mean()))
    chance = load_pruned(llama)
    for index, layer in enumerate(chance.model.layers):
        gone = torch.randperm(48, generator=torch.Generator().manual_seed(index))[:24]
        layer.mlp.down_proj.weight.data[:, gone] = 0.0
    lost.append(float((logits(chance) - dense).square().mean()))
    assert lost[0] < lost[1]


def test_a_killed_run_goes_on_at_the_block(llama, plan, tmp_path, monkeypatch):
    from tailwise.compression.shrinking import smaller as structured_calibrated

    apply(plan, llama, tmp_path / "expected", options=CALIBRATED)
    real = structured_calibrated._Choosing.visit

    def killed(self, block, found):
        if block.index == 2:
            raise KeyboardInterrupt
        real(self, block, found)

    monkeypatch.setattr(structured_calibrated._Choosing, "visit", killed)
    with pytest.raises(KeyboardInterrupt):
        apply(plan, llama, tmp_path / "out", options=CALIBRATED)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(structured_calibrated._Choosing, "visit", real)
    assert apply(plan, llama, tmp_path / "out", options=CALIBRATED).resumed == 2
    one, other = load_pruned(tmp_path / "expected"), load_pruned(tmp_path / "out")
    assert torch.equal(logits(one), logits(other))


# Whole blocks


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_model_without_a_block_computes_as_if_the_block_were_passed_over(tmp_path, kind):
    folder = saved(kind, tmp_path / "model")
    plan = without_blocks(plan_for(folder, operator="structured", sparsity=0.0), named_blocks([1]))
    apply(plan, folder, tmp_path / "out")
    model = built(kind)
    (block,) = (module for name, module in model.named_modules() if name.endswith((".h.1", "layers.1")))
    block.forward = lambda state, *_, **__: state
    smaller = transformers_loads(tmp_path / "out")
    assert smaller.config.num_hidden_layers == 2
    if kind != "gemma3":  # its kinds of attention alternate with the number of the layer
        torch.testing.assert_close(logits(smaller, kind), logits(model, kind), rtol=1e-4, atol=1e-4)


def test_a_config_with_an_entry_for_each_block_loses_one(tmp_path):
    folder = saved("gemma3", tmp_path / "model")
    plan = without_blocks(plan_for(folder, operator="structured", sparsity=0.0), named_blocks([1]))
    apply(plan, folder, tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["layer_types"] == ["sliding_attention", "sliding_attention"]


def test_blocks_and_widths_go_together(llama, plan, tmp_path):
    done = apply(without_blocks(uneven(plan), named_blocks([0])), llama, tmp_path / "out", options=CALIBRATED)
    shapes = json.loads((tmp_path / "out" / PRUNED_FILE).read_text())["layers"]
    assert {name for name in shapes if "up" in name} == {f"model.layers.{i}.mlp.up_proj" for i in (0, 1)}
    assert [item.achieved for item in done.tensors if ".0." in item.tensor] == [1.0] * 7
    assert torch.isfinite(logits(load_pruned(tmp_path / "out"))).all()


def test_a_block_that_passes_its_input_on_has_no_influence_and_goes_first(tmp_path):
    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.models.walking.hosts import load_host

    model = built("llama")
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            model.model.layers[1].get_submodule(name).weight.zero_()
    model.save_pretrained(tmp_path / "model")
    plan = plan_for(tmp_path / "model", operator="structured", sparsity=0.0)
    with open_checkpoint(tmp_path / "model") as checkpoint:
        host = load_host(checkpoint, tmp_path / "model")
        found = block_influence(host, inputs_for("llama"))
    assert found["model.layers.1"] == pytest.approx(0.0, abs=1e-9)
    assert min(found["model.layers.0"], found["model.layers.2"]) > 1e-3
    chosen = least_influence(plan, host.places, found, 1)
    assert list(chosen) == [1]
    apply(without_blocks(plan, chosen), tmp_path / "model", tmp_path / "out")
    torch.testing.assert_close(logits(transformers_loads(tmp_path / "out")), logits(model), rtol=1e-4, atol=1e-5)


def test_a_plan_with_blocks_is_checked_shown_compared_and_read_back(plan, tmp_path):
    found = without_blocks(plan, named_blocks([2]))
    assert Plan.load(found.save(tmp_path / "plan.yaml")) == found
    assert found.validate() == ()
    assert found.budget["achieved"] == pytest.approx(2 / 3)
    assert {change.after for change in plan.diff(found).changed if change.field == "pattern"} == {"block"}
    assert any("1.000 block" in cell for line in plan_grid(found).lines for cell in line)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pattern": "block", "sparsity": 1.0}, "the other entries of block 0 go with it"),
        ({"pattern": "block", "sparsity": 0.5}, "with the pattern block it is 1"),
        ({"pattern": "block", "sparsity": 1.0, "block": None}, "is in no block"),
        ({"sparsity": 1.0}, "a fraction from 0 to 0.99"),
    ],
)
def test_half_a_block_is_refused(plan, change, said):
    wrong = replace(plan, decisions=(plan.decisions[0].but(**change), *plan.decisions[1:]))
    with pytest.raises(UsageError, match=said):
        wrong.validate()


def test_other_operators_take_no_blocks_and_one_block_stays(plan):
    with pytest.raises(UsageError, match="a plan for wanda takes no whole blocks"):
        without_blocks(plan.replace(operator="wanda"), named_blocks([1]))
    with pytest.raises(UsageError, match="no block 7"):
        without_blocks(plan, named_blocks([7]))
    with pytest.raises(UsageError, match="at least one must stay"):
        without_blocks(plan, named_blocks([0, 1, 2]))


# What cannot be


def refused(plan, folder, tmp_path, said, **options):
    with pytest.raises(UsageError, match=said):
        apply(plan, folder, tmp_path / "out", options=ApplyOptions(**options))
    assert not (tmp_path / "out").exists()


def test_amounts_that_leave_no_head_are_refused(llama, plan, tmp_path):
    wrong = with_amounts(plan, lambda d: 0.8 if d.role.startswith("attn") and d.block == 1 else 0.0)
    refused(wrong, llama, tmp_path, r"attention heads of block 1: a sparsity of 0.8 would remove all 2")
    wrong = with_amounts(plan, lambda d: 0.8 if d.role.startswith("attn") else 0.0)
    refused(wrong, llama, tmp_path, "would remove all 2", equal_widths=True)


def test_amounts_that_leave_no_neuron_are_refused(llama, plan, tmp_path):
    wrong = with_amounts(plan, lambda d: 0.97 if d.role.startswith("mlp") else 0.0)
    refused(wrong, llama, tmp_path, "would remove all 48")


def test_a_part_of_what_goes_together_is_refused(llama, plan, tmp_path):
    without = replace(plan, decisions=tuple(d for d in plan if d.role != "mlp_gate"))
    refused(without, llama, tmp_path, r"the plan lacks model.layers.0.mlp.gate_proj")
    without = replace(plan, decisions=tuple(d for d in plan if d.role != "attn_v"))
    refused(without, llama, tmp_path, "the plan has k, o, q of its attention")


def test_two_amounts_for_what_goes_together_are_refused(llama, plan, tmp_path):
    wrong = with_amounts(plan, lambda d: 0.2 if d.role == "mlp_up" else 0.5)
    refused(wrong, llama, tmp_path, r"its entries ask for 0.2, 0.5")


def test_heads_that_the_config_does_not_explain_are_refused(llama, plan, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    for path in llama.iterdir():
        if path.is_file():
            (folder / path.name).write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_key_value_heads": 3}))
    with pytest.raises(TailwiseError):
        apply(plan, folder, tmp_path / "out", options=ApplyOptions(force=True))
    assert not (tmp_path / "out").exists()


def test_query_heads_that_the_key_heads_do_not_divide_are_refused():
    with pytest.raises(UsageError, match="8 query heads are not divided by 3 key-value heads"):
        _counted(Dims("llama", 8, 3, 16, 128, frozenset(), None), "block 0")


def test_embeddings_and_experts_are_refused_by_name(llama, plan, tmp_path):
    name = "model.embed_tokens.weight"
    entry = plan.decisions[0].but(tensor=name, role="embed", block=None, n_params=96 * 32, shape=(96, 32))
    refused(replace(plan, decisions=(*plan.decisions, entry)), llama, tmp_path, "does not take a embed", force=True)


def test_a_model_that_transformers_does_not_know_is_refused(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    tensors = {f"layers.0.{role}": torch.randn(16, 16) for role in ("mlp.up_proj.weight", "mlp.down_proj.weight")}
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "nobody", "architectures": ["NobodyForNothing"]}))
    rows = [row(name.removesuffix(".weight"), role, 0, (16, 16))
            for name, role in zip(tensors, ("mlp_up", "mlp_down"), strict=True)]  # fmt: skip
    plan = plan_prune(audit_of(rows), Request(0.5, operator="structured")).replace(fingerprint="")
    with pytest.raises(TailwiseError, match=r"nobody|NobodyForNothing"):
        apply(plan, folder, tmp_path / "out")


def test_masks_and_factors_are_no_matter_of_structured_plans(llama, plan, tmp_path):
    refused(plan, llama, tmp_path, "has no mask", save_masks=True)
    refused(plan, llama, tmp_path, "structured has no factors", factored=True)
    refused(plan, llama, tmp_path, "cannot be a multiple of 0", multiple=0)
