"""The table of names."""

from __future__ import annotations

import pytest

from tailwise.checkpoints.blocks import number_blocks
from tailwise.checkpoints.roles import _TABLE, ROLES, classify

NAMES = {
    # GGUF
    "token_embd.weight": ("embed", None),
    "output.weight": ("lm_head", None),
    "output_norm.weight": ("norm", None),
    "blk.3.attn_q.weight": ("attn_q", 3),
    "blk.3.attn_k.weight": ("attn_k", 3),
    "blk.3.attn_v.weight": ("attn_v", 3),
    "blk.3.attn_output.weight": ("attn_o", 3),
    "blk.3.attn_qkv.weight": ("attn_qkv", 3),
    "blk.3.attn_norm.weight": ("norm", 3),
    "blk.3.ffn_gate.weight": ("mlp_gate", 3),
    "blk.3.ffn_up.weight": ("mlp_up", 3),
    "blk.3.ffn_down.weight": ("mlp_down", 3),
    "blk.3.ffn_gate_inp.weight": ("router", 3),
    "blk.3.ffn_gate_exps.weight": ("expert_gate", 3),
    "blk.3.ffn_down.7.weight": ("expert_down", 3),
    "blk.3.ffn_up_shexp.weight": ("shared_up", 3),
    "blk.3.ssm_in.weight": ("ssm_in", 3),
    "blk.3.time_mix_receptance.weight": ("rwkv_r", 3),
    "blk.3.attn_kv_a_mqa.weight": ("attn_kv_a", 3),
    "rope_freqs.weight": ("other", None),
    # the original releases of Llama and Mixtral, and transformers 4's Mixtral
    "tok_embeddings.weight": ("embed", None),
    "layers.5.attention.wq.weight": ("attn_q", 5),
    "layers.5.attention.wo.weight": ("attn_o", 5),
    "layers.5.feed_forward.w1.weight": ("mlp_gate", 5),
    "layers.5.feed_forward.w2.weight": ("mlp_down", 5),
    "layers.5.feed_forward.w3.weight": ("mlp_up", 5),
    "model.layers.5.block_sparse_moe.experts.6.w2.weight": ("expert_down", 5),
    "model.layers.5.block_sparse_moe.gate.weight": ("router", 5),
    # per-expert names of DeepSeek and Qwen
    "model.layers.5.mlp.experts.11.gate_proj.weight": ("expert_gate", 5),
    "model.layers.5.mlp.shared_experts.up_proj.weight": ("shared_up", 5),
    "model.layers.5.mlp.gate.e_score_correction_bias": ("bias", 5),
    # torchvision, timm
    "layer3.1.conv2.weight": ("conv", None),
    "layer3.0.downsample.0.weight": ("conv", 0),
    "fc.weight": ("classifier", None),
    "features.4.weight": ("conv", 4),
    "blocks.2.attn.qkv.weight": ("attn_qkv", 2),
    "blocks.2.attn.proj.weight": ("attn_o", 2),
    "blocks.2.mlp.fc1.weight": ("mlp_up", 2),
    "patch_embed.proj.weight": ("patch_embed", None),
    "pos_embed": ("pos_embed", None),
    "head.weight": ("classifier", None),
    "conv_proj.weight": ("patch_embed", None),
    # others
    "model.layers.1.input_layernorm.weight": ("norm", 1),
    "h.4.ln_1.weight": ("norm", 4),
    "bn1.running_mean": ("norm", None),
    "transformer.h.0.attn.bias": ("bias", 0),
    "score.weight": ("classifier", None),
    "model.visual.merger.mlp.0.weight": ("projector", None),
    "something.new.weight": ("other", None),
}
NDIM = {"layer3.1.conv2.weight": 4, "layer3.0.downsample.0.weight": 4, "features.4.weight": 4, "pos_embed": 3,
        "patch_embed.proj.weight": 4, "conv_proj.weight": 4}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_other_releases(name):
    role, block = NAMES[name]
    match = classify(name, NDIM.get(name, 2), {})
    assert match.role == role
    if block is not None:
        assert match.block == block


def test_every_role_of_the_table_is_described_and_has_a_use():
    derived = {role.replace("mlp_", new) for _, role, _ in _TABLE for new in ("expert_", "shared_", "mlp_")}
    assert {role for _, role, _ in _TABLE} <= set(ROLES)
    assert set(ROLES) <= derived | {"norm", "bias", "other"}


def test_the_model_type_settles_names_that_mean_two_things():
    assert classify("head.weight", 2, {"model_type": "rwkv"}).role == "lm_head"
    assert classify("transformer.h.0.mlp.w2.weight", 2, {"model_type": "qwen"}).role == "mlp_gate"
    assert classify("layers.0.mlp.w2.weight", 2, {}).role == "mlp_down"


def blocks(*names):
    return list(number_blocks(names).values())


def test_decoder_blocks_follow_encoder_blocks_whatever_the_order_of_the_file():
    assert blocks("decoder.layers.0.x", "decoder.layers.1.x", "encoder.layers.0.x", "encoder.layers.2.x") == [
        3, 4, 0, 2,
    ]  # fmt: skip


def test_vision_towers_come_first():
    assert blocks("text_model.encoder.layers.1.x", "vision_model.encoder.layers.0.x") == [2, 0]
    assert blocks("model.layers.0.x", "visual.blocks.0.x", "visual.blocks.1.x") == [2, 0, 1]
    assert blocks("enc.blk.1.x", "dec.blk.0.x") == [1, 2]


def test_stages_are_numbered_through():
    names = [f"layer{s}.{b}.conv1.weight" for s in (1, 2, 3, 4) for b in (0, 1)]
    assert blocks(*names) == list(range(8))
    assert blocks("e.stages.0.layers.0.x", "e.stages.1.layers.0.x", "e.stages.1.layers.1.x",
                  "e.stages.1.downsampling_layer.1.weight") == [0, 1, 2, 1]  # fmt: skip
    assert blocks("features.1.0.x", "features.1.1.x", "features.2.0.x") == [0, 1, 2]


def test_numbers_of_a_part_are_those_of_the_whole():
    assert blocks("model.layers.17.self_attn.q_proj", "model.layers.17.mlp.experts.3.w1") == [17, 17]


def test_names_without_a_number_have_no_block():
    assert number_blocks(["lm_head.weight"]) == {}
