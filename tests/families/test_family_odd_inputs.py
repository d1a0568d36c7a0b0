"""Models as people have them: layers beside the model, no head, many shards, broken experts, blocks that loop."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from families.kinds import FAMILIES, built, inputs_of, loaded, outputs, saved
from families.reference import gone_from
from tailwise.audits.run import audit
from tailwise.compression.applying.apply import apply
from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.compression.making.make import plan_prune, plan_quantize
from tailwise.compression.making.request import QuantizeRequest, Request
from tailwise.compression.plans.candidates import sizes_in
from tailwise.compression.shrinking.blocks_dropped import named_blocks, without_blocks
from tailwise.compression.trying.drop import DropOptions, fewer_experts
from tailwise.core.errors import UsageError


def structured(folder):
    return plan_prune(audit(folder, workers=1), Request(0.0, "uniform", "structured"))


def without_one(folder):
    return fewer_experts(structured(folder), str(folder), "1", DropOptions(None))


def test_experts_beside_the_model_stay_and_are_said(tmp_path):
    """DeepSeek-V3 and its kin store a layer that foretells more tokens, which transformers does not read."""
    model = saved(FAMILIES["deepseek_v3"], tmp_path / "model")
    path = tmp_path / "model" / "model.safetensors"
    stored = load_file(path)
    extra = {name.replace("layers.1.", "layers.2."): value.clone() for name, value in stored.items()
             if "layers.1." in name}  # fmt: skip
    save_file({**stored, **extra}, path, {"format": "pt"})
    done = apply(without_one(tmp_path / "model"), tmp_path / "model", tmp_path / "out")
    after = load_file(tmp_path / "out" / "model.safetensors")
    assert all(torch.equal(after[name], value) for name, value in extra.items())
    assert any("12 tensors of experts that transformers does not read stay as they are" in note for note in done.notes)
    assert type(model).from_pretrained(tmp_path / "out").model.layers[1].mlp.experts.down_proj.shape[0] == 3


def test_a_model_without_its_head_loses_experts_and_blocks(tmp_path):
    model = built(FAMILIES["mixtral"]).model
    model.save_pretrained(tmp_path / "model")
    apply(without_one(tmp_path / "model"), tmp_path / "model", tmp_path / "fewer")
    assert loaded(model, tmp_path / "fewer").layers[0].mlp.experts.down_proj.shape[0] == 2
    apply(without_blocks(structured(tmp_path / "model"), named_blocks([0])), tmp_path / "model", tmp_path / "short")
    assert len(loaded(model, tmp_path / "short").layers) == 1


def test_the_index_of_several_shards_counts_what_is_left(tmp_path):
    model = built(FAMILIES["qwen3_moe"])
    model.save_pretrained(tmp_path / "model", max_shard_size="20KB")
    apply(without_one(tmp_path / "model"), tmp_path / "model", tmp_path / "out")
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    files = [load_file(path) for path in (tmp_path / "out").glob("*.safetensors")]
    count = sum(value.numel() for file in files for value in file.values())
    assert index["metadata"] == {"total_parameters": count, "total_size": 4 * count}
    assert set(index["weight_map"]) == {name for file in files for name in file}
    assert count < sum(value.numel() for value in model.parameters())
    loaded(model, tmp_path / "out")


@pytest.mark.parametrize("name", ["mixtral", "gpt_oss"])
def test_an_expert_that_is_not_finite_goes_first(name, tmp_path):
    model = built(FAMILIES[name])
    model.model.layers[0].mlp.experts.down_proj.data[1, 0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    plan = without_one(tmp_path / "model")
    assert any("entries that are not finite" in item.reason for item in plan)
    apply(plan, tmp_path / "model", tmp_path / "out")
    after = loaded(model, tmp_path / "out")
    assert gone_from(model, after)[f"model.layers.0.mlp.{'gate' if name == 'mixtral' else 'router'}"] == [1]
    assert torch.isfinite(outputs(after, inputs_of(FAMILIES[name]))).all()


def test_a_stack_with_an_expert_that_is_not_finite_is_left_as_a_whole(tmp_path):
    model = built(FAMILIES["gpt_oss"])
    model.model.layers[0].mlp.experts.down_proj.data[1, 0, 0] = float("nan")
    model.save_pretrained(tmp_path / "model")
    found = audit(tmp_path / "model", workers=1)
    asked = QuantizeRequest(formats=("int4-g8",), bits=None, allocator="uniform")
    for plan in (plan_prune(found, Request(0.5)), plan_quantize(found, asked)):
        assert "model.layers.0.mlp.experts.down_proj" not in plan
        assert any("not measured: model.layers.0.mlp.experts.down_proj[1]" in note for note in plan.notes)
        apply(plan, tmp_path / "model", tmp_path / plan.operator)


def test_a_part_that_is_too_small_to_be_measured_goes_with_its_tensor(tmp_path):
    """Falcon's one head of keys and values beside many of queries."""
    model = saved(FAMILIES["falcon"], tmp_path / "model")
    found = audit(tmp_path / "model", workers=1, min_evals=12)
    small = [row.name for row in found.unmeasured if "query_key_value" in row.name]
    plan = plan_prune(found, Request(0.5))
    sizes = {name: value.numel() for name, value in load_file(tmp_path / "model" / "model.safetensors").items()}
    assert small
    assert any("query_key_value" in item.tensor for item in plan)
    assert not plan.misfits(sizes)
    assert not plan.misfits(sizes_in(found))
    apply(plan, tmp_path / "model", tmp_path / "out")
    loaded(model, tmp_path / "out")


def test_one_token_again_and_again_calibrates(tmp_path):
    """Padding that was taken for text: XᵀX has rank one."""
    model = saved(FAMILIES["llama"], tmp_path / "model")
    found = audit(tmp_path / "model", workers=1)
    options = ApplyOptions(calibration=torch.full((4, 48), 7))
    plans = [plan_prune(found, Request(0.5, "uniform", name)) for name in ("sparsegpt", "low_rank")]
    plans.append(plan_quantize(found, QuantizeRequest(formats=("int4-g8",), bits=None, allocator="uniform",
                                                      operator="gptq")))  # fmt: skip
    for plan in plans:
        apply(plan, tmp_path / "model", tmp_path / plan.operator, options=options)
        after = loaded(model, tmp_path / plan.operator)
        assert torch.isfinite(outputs(after, inputs_of(FAMILIES["llama"]))).all()


LOOPED = {"num_hidden_layers": 3, "n_input_layers": 1, "n_recurrent_layers": 1, "n_output_layers": 1,
          "n_recurrent_loops": 2}  # fmt: skip


def test_blocks_that_loop_are_not_taken_for_blocks_that_do_not(tmp_path):
    """Their inputs in the second round would be left out without a word."""
    transformers = pytest.importorskip("transformers")
    if "dory" not in transformers.CONFIG_MAPPING:
        pytest.skip("a family that this transformers has not")
    config = transformers.CONFIG_MAPPING["dory"](
        hidden_size=32, intermediate_size=48, num_attention_heads=4, num_key_value_heads=2, vocab_size=64, head_dim=8,
        **LOOPED,
    )  # fmt: skip
    transformers.DoryForCausalLM(config).save_pretrained(tmp_path / "model")
    found = audit(tmp_path / "model", workers=1)
    options = ApplyOptions(calibration=torch.randint(1, 60, (2, 16)))
    with pytest.raises(UsageError, match="its blocks are gone through more than once"):
        apply(
            plan_prune(found, Request(0.5, "uniform", "wanda")), tmp_path / "model", tmp_path / "out", options=options
        )
    apply(plan_prune(found, Request(0.5, "uniform")), tmp_path / "model", tmp_path / "out")


def test_a_model_that_goes_through_its_blocks_twice_is_told_whatever_its_config_says():
    from tailwise.models.walking.walk import walk_blocks

    class Twice(torch.nn.Module):
        def __init__(self, layers):
            super().__init__()
            self.layers = layers

        def forward(self, x):
            for layer in (self.layers[0], self.layers[0], self.layers[1]):
                x = layer(x)
            return x

    layers = torch.nn.ModuleList([torch.nn.Sequential(torch.nn.Linear(8, 8)) for _ in range(2)])

    class Nothing:
        def needs(self, block):
            return dict.fromkeys(block.layers(), "norms")

        def visit(self, block, found):
            raise AssertionError("no block may be visited")

    with pytest.raises(UsageError, match="more than once"):
        walk_blocks(Twice(layers), {"x": torch.randn(2, 8)}, Nothing())
