"""Tensor types for llama-quantize."""

from __future__ import annotations

import json
import re
import sys

import pytest
from exported_models import llama_plan

from tailwise.compression.export.exporter import export
from tailwise.compression.export.llamacpp import _TYPES, gguf_type
from tailwise.compression.plans.decision import entry
from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import FORMATS, parse_format

gguf = pytest.importorskip("gguf")


def lines_of(path):
    return [line.rsplit("=", 1) for line in path.read_text().split()]


def chosen(path, tensor):
    """As llama.cpp does it: the first pattern that is found in the name."""
    return next(kind for pattern, kind in lines_of(path) if re.search(pattern, tensor))


def one(tensor, role, shape, block=0, chosen="int8-g32"):
    return entry(tensor, tensor, role, block, 1, format=chosen, shape=shape, reason="made")


def names_of(tmp_path, *entries):
    plan = llama_plan("int8-g32").replace(decisions=entries)
    return [
        pattern.strip("^$").replace("\\", "")
        for pattern, _ in lines_of(export(plan, "llamacpp", tmp_path / "t.txt")[0])
    ]


def test_every_tensor_gets_its_type_under_the_name_that_gguf_gives_it(tmp_path):
    plan = llama_plan("int4-g32", "int8-g32", "mxfp4", "bf16")
    path, notes = export(plan, "llamacpp", tmp_path / "types.txt")
    assert notes.name == "types.notes.json"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 12)
    expected = {"int4-g32": "q4_0", "int8-g32": "q8_0", "mxfp4": "mxfp4", "bf16": "bf16"}
    for item in plan:
        name = names.get_name(item.tensor, try_suffixes=(".weight",))
        assert chosen(path, name) == expected[item.format]
    assert len(lines_of(path)) == len(plan) + 1


def test_block_1_is_not_block_11_and_all_else_stays_in_bfloat16(tmp_path):
    plan = llama_plan("int4-g32")
    path, _ = export(plan.replace(decisions=plan.decisions[7:14]), "llamacpp", tmp_path / "t.txt")
    assert chosen(path, "blk.1.attn_q.weight") == "q4_0"
    for other in ("blk.11.attn_q.weight", "blk.1.attn_q.weight2", "token_embd.weight", "output.weight"):
        assert chosen(path, other) == "bf16"
    assert lines_of(path)[-1] == [".*", "bf16"]


def test_a_file_has_no_blanks_inside_a_line_and_no_capitals(tmp_path):
    path, _ = export(llama_plan("int4-g32"), "llamacpp", tmp_path / "t.txt")
    text = path.read_text()
    assert all(len(line.split()) == 1 for line in text.splitlines())
    assert text == text.lower()


@pytest.mark.parametrize(("tensor", "role", "name"), [
    ("transformer.h.3.attn.c_attn.weight", "attn_qkv", "blk.3.attn_qkv.weight"),
    ("model.layers.3.self_attn.qkv_proj.weight", "attn_qkv", "blk.3.attn_qkv.weight"),
    ("gpt_neox.layers.10.mlp.dense_h_to_4h.weight", "mlp_up", "blk.10.ffn_up.weight"),
    ("model.layers.2.block_sparse_moe.experts.7.w1.weight", "expert_gate", "blk.2.ffn_gate_exps.weight"),
    ("model.layers.2.mlp.experts.down_proj", "expert_down", "blk.2.ffn_down_exps.weight"),
    ("lm_head.weight", "lm_head", "output.weight"),
    ("model.language_model.layers.3.mlp.up_proj.weight", "mlp_up", "blk.3.ffn_up.weight"),
    ("language_model.model.layers.3.self_attn.q_proj.weight", "attn_q", "blk.3.attn_q.weight"),
    ("blk.4.ffn_down.weight", "mlp_down", "blk.4.ffn_down.weight"),
    ("model.text_model.layers.3.self_attn.o_proj.weight", "attn_o", "blk.3.attn_output.weight"),
    ("thinker.model.layers.3.mlp.up_proj.weight", "mlp_up", "blk.3.ffn_up.weight"),
    ("model.layers.3.mlp.experts.gate_up_proj", "expert_gate_up", "blk.3.ffn_gate_exps.weight"),
    ("model.layers.3.self_attn.kv_a_proj_with_mqa.weight", "attn_kv_a", "blk.3.attn_kv_a_mqa.weight"),
    ("model.layers.3.self_attn.q_a_proj.weight", "attn_q_a", "blk.3.attn_q_a.weight"),
    ("model.layers.3.self_attn.q_b_proj.weight", "attn_q_b", "blk.3.attn_q_b.weight"),
    ("model.layers.3.mlp.shared_experts.up_proj.weight", "shared_up", "blk.3.ffn_up_shexp.weight"),
    ("model.layers.3.mlp.shared_expert.down_proj.weight", "shared_down", "blk.3.ffn_down_shexp.weight"),
    ("model.layers.3.linear_attn.out_proj.weight", "attn_o", "blk.3.ssm_out.weight"),
])  # fmt: skip
def test_names_of_other_families(tmp_path, tensor, role, name):
    assert names_of(tmp_path, one(tensor, role, (64, 64)))[0] == name


@pytest.mark.parametrize(("tensor", "role", "names"), [
    ("model.layers.3.self_attn.kv_b_proj.weight", "attn_kv_b", ["ATTN_K_B", "ATTN_V_B"]),
    ("model.layers.3.linear_attn.in_proj_qkvz.weight", "attn_qkv", ["ATTN_QKV", "ATTN_GATE"]),
    ("model.language_model.layers.3.mlp.experts.gate_up_proj", "expert_gate_up", ["FFN_GATE_EXP", "FFN_UP_EXP"]),
    ("language_model.model.layers.3.feed_forward.experts.gate_up_proj", "expert_gate_up",
     ["FFN_GATE_EXP", "FFN_UP_EXP"]),
    ("model.layers.3.mlp.experts.gate_up_proj", "expert_gate_up", ["FFN_GATE_EXP", "FFN_UP_EXP"]),
    ("model.layers.3.feed_forward.experts.gate_up_proj", "expert_gate_up", ["FFN_GATE_EXP", "FFN_UP_EXP"]),
    ("model.layers.3.block_sparse_moe.input_linear.weight", "expert_gate_up", ["FFN_GATE_EXP", "FFN_UP_EXP"]),
    ("model.layers.3.block_sparse_moe.output_linear.weight", "expert_down", ["FFN_DOWN_EXP"]),
    ("model.layers.3.shared_mlp.input_linear.weight", "shared_gate_up", ["FFN_GATE_SHEXP", "FFN_UP_SHEXP"]),
])  # fmt: skip
def test_what_the_converter_cuts_apart_is_named_by_its_parts(tmp_path, tensor, role, names):
    own = [gguf.TENSOR_NAMES[gguf.MODEL_TENSOR[name]].format(bid=3) + ".weight" for name in names]
    assert names_of(tmp_path, one(tensor, role, (64, 64)))[:-1] == own


#: What the converter of llama.cpp writes for one block of a family: stored names of transformers → names in the file.
#: Written out by hand from what its classes say of each tensor (cut, renamed, stacked), not made from a table.
WRITTEN = {
    "DeepSeek-V3": {
        "self_attn.q_a_proj.weight": ["attn_q_a"], "self_attn.q_b_proj.weight": ["attn_q_b"],
        "self_attn.kv_a_proj_with_mqa.weight": ["attn_kv_a_mqa"],
        "self_attn.kv_b_proj.weight": ["attn_k_b", "attn_v_b"], "self_attn.o_proj.weight": ["attn_output"],
        "mlp.experts.0.gate_proj.weight": ["ffn_gate_exps"], "mlp.experts.0.up_proj.weight": ["ffn_up_exps"],
        "mlp.experts.0.down_proj.weight": ["ffn_down_exps"],
        "mlp.shared_experts.gate_proj.weight": ["ffn_gate_shexp"],
        "mlp.shared_experts.up_proj.weight": ["ffn_up_shexp"],
        "mlp.shared_experts.down_proj.weight": ["ffn_down_shexp"],
    },
    "gpt-oss": {
        "self_attn.q_proj.weight": ["attn_q"], "self_attn.k_proj.weight": ["attn_k"],
        "self_attn.v_proj.weight": ["attn_v"], "self_attn.o_proj.weight": ["attn_output"],
        "mlp.experts.gate_up_proj": ["ffn_gate_exps", "ffn_up_exps"], "mlp.experts.down_proj": ["ffn_down_exps"],
    },
    "Qwen3-Next": {
        "linear_attn.in_proj_qkvz.weight": ["attn_qkv", "attn_gate"], "linear_attn.out_proj.weight": ["ssm_out"],
        "mlp.experts.0.gate_proj.weight": ["ffn_gate_exps"], "mlp.experts.0.up_proj.weight": ["ffn_up_exps"],
        "mlp.experts.0.down_proj.weight": ["ffn_down_exps"],
        "mlp.shared_expert.gate_proj.weight": ["ffn_gate_shexp"],
        "mlp.shared_expert.up_proj.weight": ["ffn_up_shexp"],
        "mlp.shared_expert.down_proj.weight": ["ffn_down_shexp"],
    },
}  # fmt: skip


@pytest.mark.parametrize("family", list(WRITTEN))
@pytest.mark.parametrize(
    "before", ["model.layers.5.", "model.language_model.layers.5.", "language_model.model.layers.5."]
)
def test_a_whole_block_has_the_names_that_the_converter_writes(tmp_path, family, before):
    table = WRITTEN[family]
    entries = [one(before + name, "other", (64, 64), 5) for name in table]
    expected = [f"blk.5.{name}.weight" for names in table.values() for name in names]
    assert names_of(tmp_path, *entries)[:-1] == expected


def test_keys_that_are_stored_turned_are_said(tmp_path):
    plan = llama_plan("int8-g32").replace(
        decisions=(one("model.layers.3.self_attn.kv_b_proj.weight", "attn_kv_b", (64, 64)),)
    )
    _, notes = export(plan, "llamacpp", tmp_path / "t.txt")
    assert json.loads(notes.read_text())["transposed"]["tensors"] == ["blk.3.attn_k_b.weight"]


def test_towers_beside_the_text_are_refused(tmp_path):
    with pytest.raises(UsageError, match=r"not in the file that llama-quantize reads: model\.visual\.blocks\.0"):
        names_of(tmp_path, one("model.visual.blocks.0.attn.proj.weight", "attn_o", (64, 64)))


def test_experts_of_a_block_are_one_line_and_several_formats_of_them_an_error(tmp_path):
    experts = [one(f"model.layers.0.mlp.experts.{n}.up_proj.weight", "expert_up", (64, 64)) for n in range(3)]
    assert names_of(tmp_path, *experts) == ["blk.0.ffn_up_exps.weight", ".*"]
    with pytest.raises(UsageError, match=r"several formats: blk\.0\.ffn_up_exps"):
        names_of(tmp_path, *experts[:2], experts[2].but(format="int4-g32"))


def test_tensors_without_a_name_in_gguf_are_refused_together(tmp_path):
    with pytest.raises(UsageError, match=r"no architecture of llama\.cpp has such a tensor: a\.strange\.name\.weight"):
        names_of(tmp_path, one("a.strange.name.weight", "other", (64, 64)), one("lm_head.weight", "lm_head", (64, 64)))


def test_what_llama_quantize_never_quantizes_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"never quantizes such tensors: model\.layers\.0\.mlp\.gate\.weight"):
        names_of(tmp_path, one("model.layers.0.mlp.gate.weight", "router", (8, 64)))


def test_inputs_that_no_block_divides_are_refused(tmp_path):
    with pytest.raises(UsageError, match="fp8_e4m3 where 32 does not divide the inputs: lm_head"):
        names_of(tmp_path, one("lm_head.weight", "lm_head", (64, 48), chosen="fp8_e4m3"))


def test_types_are_those_of_gguf_with_its_blocks_and_bits():
    for name, (block, bits) in _TYPES.items():
        kind = gguf.GGMLQuantizationType[name.upper()]
        size, stored = gguf.GGML_QUANT_SIZES[kind]
        assert (size, stored * 8 / size) == (block, bits)


@pytest.mark.parametrize("base", FORMATS)
def test_every_format_has_a_type_of_about_its_bits(base):
    kind = gguf_type(base, (256, 256))
    assert kind is not None
    bits = parse_format(base).bits_per_weight(256, 256)
    assert kind.bits == pytest.approx(min(bits, 32), abs=1.0)
    if kind.nearness == "the same":
        assert kind.bits == bits


@pytest.mark.parametrize(("name", "cols", "type_"), [
    ("int3", 256, "q3_k"), ("int3-g32", 96, "q4_0"), ("int2", 512, "q2_k"), ("int2-g32", 64, "q4_0"),
    ("int4-asym-g32", 64, "q4_1"), ("nf4", 64, "iq4_nl"), ("nvfp4", 64, "nvfp4"), ("nvfp4", 96, "q4_0"),
    ("mxfp6", 256, "q6_k"), ("mxfp6", 64, "q8_0"), ("fp16", 7, "f16"), ("int8", 48, None),
])  # fmt: skip
def test_the_nearest_type_has_blocks_that_divide_the_inputs(name, cols, type_):
    found = gguf_type(name, (64, cols))
    assert (found and found.name) == type_


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1", "q8_0"])
def test_formats_with_the_name_of_a_type_are_that_type(name):
    found = gguf_type(name, (64, 64))
    assert found is not None
    assert (found.name, found.nearness) == (name, "the same")


def test_mxfp4_is_stored_alike():
    import numpy as np
    import torch

    weights = torch.randn(64, 256, generator=torch.Generator().manual_seed(0))
    kind = gguf.GGMLQuantizationType.MXFP4
    theirs = gguf.quants.dequantize(gguf.quants.quantize(weights.numpy(), kind), kind)
    ours = parse_format("mxfp4").quantize(weights).values.numpy()
    assert np.array_equal(theirs, ours)


def test_notes_say_how_near_each_type_is_and_what_becomes_of_the_bits(tmp_path):
    plan = llama_plan("int4-g32", "fp8_e4m3", "mxfp4")
    _, path = export(plan, "llamacpp", tmp_path / "t.txt")
    notes = json.loads(path.read_text())
    assert [(item["format"], item["type"], item["is"].split(";")[0]) for item in notes["formats"]] == [
        ("int4-g32", "q4_0", "the same codes and groups"), ("fp8_e4m3", "q8_0", "only the nearest by bits"),
        ("mxfp4", "mxfp4", "the same")]  # fmt: skip
    assert notes["bits_in_gguf"] == pytest.approx((4.5 + 8.5 + 4.25) / 3)
    assert notes["bits_of_plan"] == pytest.approx(
        (4.5 + parse_format("fp8_e4m3").bits_per_weight(64, 64) + 4.25) / 3, abs=0.1
    )
    assert set(notes["named_otherwise_by"]).isdisjoint({"llama", "qwen3", "gemma3"})


def test_without_gguf_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match="need the package gguf") as told:
        export(llama_plan("int4-g32"), "llamacpp", tmp_path / "t.txt")
    assert "tailwise[gguf]" in (told.value.fix or "")
