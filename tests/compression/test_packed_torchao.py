"""Packed as torchao: its tensor classes, with the scales of the plan."""

from __future__ import annotations

import warnings

import pytest
import torch
from packed_models import WINDOWS, both, logits, mixtral, plan_for, saved, values
from tiny_models import quantize

from tailwise.compression.applying.apply_options import ApplyOptions
from tailwise.core.errors import UsageError

pytest.importorskip("transformers")
pytest.importorskip("torchao")
LAYOUT = "torchao"
#: Formats that torchao multiplies by dequantizing first: the same numbers as from a dequantized checkpoint.
EXACT = ("int4-g16", "int4-asym-g16", "int8-asym", "int8-tensor", "int3-g16", "int2-asym-g32", "fp8_e4m3",
         "fp8_e4m3-tensor", "fp8_e5m2", "nvfp4")  # fmt: skip


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("llama"))


@pytest.fixture(autouse=True)
def _theirs():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.mark.parametrize("name", EXACT)
def test_transformers_computes_the_same_as_with_real_numbers(llama, tmp_path, name):
    made = both(llama, plan_for(llama, name), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))


@pytest.mark.parametrize(("dtype", "within"), [(torch.float32, 1e-5), (torch.bfloat16, 0.03)])
def test_int8_differs_by_the_order_of_its_products(tmp_path, dtype, within):
    source = saved(tmp_path / "source", dtype=dtype)
    made = both(source, plan_for(source, "int8"), LAYOUT, tmp_path)
    dense = logits(made.dense)
    assert float((logits(made.packed) - dense).norm() / dense.norm()) < within


@pytest.mark.parametrize("operator", ["rtn", "gptq"])
def test_mixed_plans_of_both_operators(llama, tmp_path, operator):
    plan = plan_for(llama, "int4-asym-g16", "nvfp4", "bf16", "fp8_e4m3", operator=operator)
    how = {"calibration": WINDOWS, "batch": 4} if operator == "gptq" else {}
    made = both(llama, plan, LAYOUT, tmp_path, **how)
    assert torch.equal(logits(made.packed), logits(made.dense))


def test_layers_hold_tensors_of_torchao(llama, tmp_path):
    import transformers

    quantize(plan_for(llama, "fp8_e4m3"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert type(model.model.layers[0].mlp.up_proj.weight).__name__ == "Float8Tensor"


@pytest.mark.parametrize("names", [("int3-g16", "fp8_e5m2", "nvfp4"), ("int4-asym-g16", "int8", "int8-tensor")])
def test_an_audit_reads_the_values_back(llama, tmp_path, names):
    made = both(llama, plan_for(llama, *names), LAYOUT, tmp_path)
    packed, dense = values(made.packed), values(made.dense)
    assert set(packed) == set(dense)
    for name, expected in dense.items():
        assert torch.equal(packed[name].to(expected.dtype), expected), name


def test_several_shards_load(tmp_path):
    import transformers

    source = saved(tmp_path / "one", tie_word_embeddings=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path / "source", max_shard_size="20KB")
    made = both(tmp_path / "source", plan_for(tmp_path / "source", "int4-g16"), LAYOUT, tmp_path)
    assert torch.equal(logits(made.packed), logits(made.dense))


def test_whole_bytes_are_counted_and_noted(llama, tmp_path):
    done = quantize(plan_for(llama, "int4-g16"), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))
    assert done.requested == pytest.approx(5.0)
    assert done.achieved == pytest.approx(8 + (16 + 8) / 16)  # a byte, a scale and a zero point of zero
    assert any("whole byte" in note for note in done.notes)
    assert "torchao" in (tmp_path / "out" / "README.md").read_text()


@pytest.mark.parametrize(
    ("name", "also", "said"),
    [
        ("mxfp4", (), "without activations in it: model.layers"),
        ("nf4-g16", (), "no tensor class for nf4-g16"),
        ("int8", ("lm_head",), r"no linear layer of a block.*: lm_head\.weight"),
    ],
)
def test_what_torchao_has_no_class_for_is_refused(llama, tmp_path, name, also, said):
    with pytest.raises(UsageError, match=said):
        quantize(plan_for(llama, name, also=also), llama, tmp_path / "out", ApplyOptions(packed=LAYOUT))


def test_experts_are_refused(tmp_path):
    source = mixtral(tmp_path / "source")
    with pytest.raises(UsageError, match="is an expert"):
        quantize(plan_for(source, "int8"), source, tmp_path / "out", ApplyOptions(packed=LAYOUT))


def test_classes_that_are_not_known_are_told_and_not_measured(tmp_path):
    from safetensors.torch import save_file

    from tailwise.checkpoints.open import open_checkpoint
    from tailwise.checkpoints.readings.partition import claimed

    codes = torch.zeros(4, 8, dtype=torch.int8)
    save_file({"m._weight_qdata": codes, "m._weight_scale_and_zero": torch.ones(4, 1)}, tmp_path / "model.safetensors")
    with open_checkpoint(tmp_path / "model.safetensors") as checkpoint:
        assert "layout that is not known" in claimed(checkpoint).unsupported["m._weight_qdata"]
