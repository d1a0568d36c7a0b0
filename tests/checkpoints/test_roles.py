"""The table of names."""

from __future__ import annotations

import time

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


#: Family → names with the role that they have, without a config. Weights of convolutions have four axes.
FAMILIES = {
    "OpenAI Whisper": """
        decoder.token_embedding embed | encoder.positional_embedding pos_embed |
        encoder.blocks.0.attn.query attn_q | encoder.blocks.0.attn.key attn_k |
        encoder.blocks.0.attn.value attn_v | encoder.blocks.0.attn.out attn_o |
        decoder.blocks.3.cross_attn.query attn_q | decoder.blocks.3.cross_attn.out attn_o |
        encoder.blocks.0.mlp.0 mlp_up | encoder.blocks.0.mlp.2 mlp_down | encoder.conv1 conv
    """,
    "torchtune": """
        tok_embeddings embed | layers.0.attn.q_proj attn_q | layers.0.attn.output_proj attn_o |
        layers.0.mlp.w1 mlp_gate | layers.0.mlp.w2 mlp_down | layers.0.mlp.w3 mlp_up | output lm_head
    """,
    "LitGPT": """
        transformer.wte embed | transformer.h.0.attn.attn attn_qkv | transformer.h.0.attn.qkv attn_qkv |
        transformer.h.0.attn.proj attn_o | transformer.h.0.mlp.fc_1 mlp_gate | transformer.h.0.mlp.fc_2 mlp_up |
        transformer.h.0.mlp.proj mlp_down | transformer.h.0.mlp.fc mlp_up | lm_head lm_head |
        transformer.h.0.mlp.experts.3.fc_1 expert_gate | transformer.h.0.mlp.experts.3.proj expert_down |
        transformer.h.0.mlp.gate router
    """,
    "Megatron": """
        embedding.word_embeddings embed | embedding.position_embeddings pos_embed |
        decoder.layers.0.self_attention.linear_qkv attn_qkv | decoder.layers.0.self_attention.linear_proj attn_o |
        decoder.layers.0.mlp.linear_fc1 mlp_up | decoder.layers.0.mlp.linear_fc2 mlp_down | output_layer lm_head |
        language_model.embedding.word_embeddings embed |
        language_model.encoder.layers.5.self_attention.query_key_value attn_qkv |
        language_model.encoder.layers.5.self_attention.dense attn_o |
        language_model.encoder.layers.5.mlp.dense_h_to_4h mlp_up |
        language_model.encoder.layers.5.mlp.dense_4h_to_h mlp_down | language_model.output_layer lm_head |
        decoder.layers.0.mlp.experts.linear_fc1 expert_up |
        decoder.layers.0.mlp.experts.local_experts.3.linear_fc1 expert_up | decoder.layers.0.mlp.router router |
        decoder.layers.0.self_attention.linear_q_down_proj attn_q_a |
        decoder.layers.0.self_attention.linear_kv_up_proj attn_kv_b |
        decoder.layers.0.mlp.shared_experts.linear_fc2 shared_down |
        module.decoder.layers.0.cross_attention.linear_kv attn_kv
    """,
    "TransformerEngine": """
        layers.0.self_attention.layernorm_qkv.query_weight attn_q |
        layers.0.self_attention.layernorm_qkv attn_qkv | layers.0.self_attention.proj attn_o |
        layers.0.layernorm_mlp.fc1_weight mlp_up | layers.0.layernorm_mlp.fc2_weight mlp_down
    """,
    "fairseq": """
        encoder.layers.0.fc1 mlp_up | encoder.layers.0.self_attn.k_proj attn_k | decoder.embed_tokens embed |
        decoder.output_projection lm_head | encoder.sentence_encoder.layers.0.fc2 mlp_down |
        decoder.layers.0.encoder_attn.out_proj attn_o
    """,
    "Stable Diffusion, one file": """
        model.diffusion_model.time_embed.0 time_embed | model.diffusion_model.time_embed.2 time_embed |
        model.diffusion_model.label_emb.0.0 cond_embed | model.diffusion_model.label_emb.0.2 cond_embed |
        model.diffusion_model.input_blocks.1.0.emb_layers.1 modulation |
        model.diffusion_model.input_blocks.1.1.proj_in projector |
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q attn_q |
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn2.to_k attn_k |
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_out.0 attn_o |
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.ff.net.0.proj mlp_up |
        model.diffusion_model.input_blocks.4.1.transformer_blocks.0.ff.net.2 mlp_down |
        model.diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_v attn_v |
        model.diffusion_model.input_blocks.1.1.proj_out projector |
        cond_stage_model.transformer.text_model.encoder.layers.0.self_attn.q_proj attn_q |
        conditioner.embedders.1.model.transformer.resblocks.0.attn.in_proj_weight attn_qkv |
        conditioner.embedders.1.model.text_projection projector |
        conditioner.embedders.1.model.token_embedding embed
    """,
    "Flux, the original": """
        img_in patch_embed | txt_in projector | time_in.in_layer time_embed | vector_in.in_layer cond_embed |
        guidance_in.out_layer time_embed | double_blocks.0.img_mod.lin modulation |
        double_blocks.0.img_attn.qkv attn_qkv | double_blocks.0.img_attn.proj attn_o |
        double_blocks.0.txt_attn.proj attn_o | double_blocks.0.img_mlp.0 mlp_up |
        double_blocks.0.txt_mlp.2 mlp_down | single_blocks.0.linear1 attn_mlp_in |
        single_blocks.0.linear2 attn_mlp_out | single_blocks.0.modulation.lin modulation |
        final_layer.linear patch_out | final_layer.adaLN_modulation.1 modulation
    """,
    "Flux in diffusers": """
        x_embedder patch_embed | context_embedder projector |
        time_text_embed.timestep_embedder.linear_1 time_embed |
        time_text_embed.guidance_embedder.linear_1 time_embed | time_text_embed.text_embedder.linear_2 cond_embed |
        transformer_blocks.0.norm1.linear modulation | transformer_blocks.0.norm1_context.linear modulation |
        transformer_blocks.0.attn.add_q_proj attn_q | transformer_blocks.0.attn.to_add_out attn_o |
        transformer_blocks.0.attn.to_out.0 attn_o | transformer_blocks.0.ff.net.0.proj mlp_up |
        transformer_blocks.0.ff_context.net.2 mlp_down | single_transformer_blocks.0.proj_mlp mlp_up |
        single_transformer_blocks.0.proj_out attn_mlp_out | single_transformer_blocks.0.norm.linear modulation |
        norm_out.linear modulation | proj_out patch_out
    """,
    "SD3, the original": """
        joint_blocks.0.x_block.attn.qkv attn_qkv | joint_blocks.0.context_block.attn.proj attn_o |
        joint_blocks.0.x_block.mlp.fc1 mlp_up | joint_blocks.0.x_block.adaLN_modulation.1 modulation |
        x_embedder.proj patch_embed | t_embedder.mlp.0 time_embed | y_embedder.mlp.0 cond_embed |
        context_embedder projector | final_layer.linear patch_out
    """,
    "UNet in diffusers": """
        conv_in conv | time_embedding.linear_1 time_embed | add_embedding.linear_1 cond_embed |
        down_blocks.0.resnets.0.conv1 conv | down_blocks.0.resnets.0.time_emb_proj modulation |
        down_blocks.1.attentions.0.proj_in projector |
        down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q attn_q |
        down_blocks.0.downsamplers.0.conv conv | up_blocks.0.upsamplers.0.conv conv |
        mid_block.attentions.0.proj_out projector | conv_out conv
    """,
    "VAE, both namings": """
        quant_conv conv | encoder.down.0.block.0.conv1 conv | encoder.mid.attn_1.q attn_q |
        encoder.mid.attn_1.proj_out attn_o | decoder.up.3.upsample.conv conv |
        decoder.mid_block.attentions.0.to_out.0 attn_o | decoder.mid_block.attentions.0.query attn_q |
        decoder.mid_block.attentions.0.proj_attn attn_o
    """,
    "DiT, both namings": """
        y_embedder.embedding_table embed | blocks.0.adaLN_modulation.1 modulation | blocks.0.attn.qkv attn_qkv |
        blocks.0.mlp.fc2 mlp_down | transformer_blocks.0.norm1.emb.timestep_embedder.linear_1 time_embed |
        transformer_blocks.0.norm1.emb.class_embedder.embedding_table embed |
        transformer_blocks.0.norm1.linear modulation | proj_out_1 patch_out | proj_out_2 patch_out
    """,
    "PixArt": """
        adaln_single.emb.timestep_embedder.linear_1 time_embed | adaln_single.linear modulation |
        caption_projection.linear_1 projector | scale_shift_table modulation | y_embedder.y_proj.fc1 projector |
        t_block.1 modulation | blocks.0.cross_attn.kv_linear attn_kv | blocks.0.cross_attn.q_linear attn_q
    """,
    "Wan, the original": """
        patch_embedding patch_embed | time_embedding.0 time_embed | time_projection.1 modulation |
        text_embedding.0 projector | blocks.0.self_attn.q attn_q | blocks.0.self_attn.o attn_o |
        blocks.0.cross_attn.k attn_k | blocks.0.ffn.0 mlp_up | blocks.0.ffn.2 mlp_down | head.head patch_out |
        blocks.0.modulation modulation | img_emb.proj.1 projector
    """,
    "Hunyuan video": """
        txt_in.individual_token_refiner.blocks.0.self_attn_qkv projector | double_blocks.0.img_attn_qkv attn_qkv |
        double_blocks.0.img_attn_proj attn_o | double_blocks.0.img_mlp.fc1 mlp_up |
        single_blocks.0.modulation.linear modulation
    """,
    "OpenAI CLIP": """
        visual.conv1 conv | visual.transformer.resblocks.0.attn.in_proj_weight attn_qkv |
        visual.transformer.resblocks.0.attn.out_proj attn_o | visual.transformer.resblocks.0.mlp.c_fc mlp_up |
        visual.proj projector | text_projection projector | positional_embedding pos_embed |
        visual.positional_embedding pos_embed | visual.class_embedding embed | token_embedding embed
    """,
    "DINOv2": """
        encoder.layer.0.mlp.weights_in mlp_gate_up | encoder.layer.0.mlp.weights_out mlp_down |
        blocks.0.mlp.w12 mlp_gate_up | blocks.0.mlp.w3 mlp_down
    """,
    "language models": """
        model.layers.0.conv.in_proj ssm_in | model.layers.0.conv.out_proj ssm_out | model.layers.0.conv.conv conv |
        model.layers.0.router.proj router | model.layers.0.linear_attn.in_proj_qkvz ssm_in |
        model.layers.0.linear_attn.in_proj_ba ssm_x | model.layers.0.linear_attn.out_proj ssm_out |
        model.layers.0.self_attn.indexer.wq_b attn_index | model.layers.0.self_attn.indexer.wk attn_index |
        model.layers.0.self_attn.indexer.weights_proj attn_index | layers.0.attn.wq_a attn_q_a |
        layers.0.attn.wkv_b attn_kv_b | layers.0.ffn.experts.0.w1 expert_gate | layers.0.ffn.gate router |
        backbone.layers.0.mixer.in_proj ssm_in | backbone.layers.0.mixer.up_proj mlp_up |
        backbone.layers.0.mixer.q_proj attn_q | backbone.layers.0.mixer.gate router |
        backbone.layers.0.mixer.experts.3.up_proj expert_up | model.layers.0.mamba.in_proj ssm_in |
        model.layers.0.mamba.x_proj ssm_x | model.layers.0.feed_forward.router router |
        model.layers.0.feed_forward.experts.1.gate_proj expert_gate |
        model.layers.0.block_sparse_moe.input_linear expert_gate_up |
        model.layers.0.shared_mlp.input_linear shared_gate_up | model.layers.0.retention.q_proj attn_q |
        model.layers.0.attn.att_proj attn_qkv | model.language_model.altup_projections.0 residual_mix |
        model.language_model.layers.0.laurel.linear_left residual_mix |
        model.layers.0.altup.modality_router residual_mix | transformer.blocks.0.ffn.experts.mlp.v1 expert_up |
        model.layers.0.temporal_block.linear_x ssm_in | model.decoder.layers.0.attention.wqkv attn_qkv |
        transformer.layers.0.attention.query_key_value attn_qkv |
        transformer.encoder.layers.0.self_attention.query_key_value attn_qkv |
        transformer.encoder.layers.0.mlp.dense_h_to_4h mlp_up | transformer.h.0.attn.c_attn attn_qkv |
        transformer.h.0.mlp.c_proj mlp_down | transformer.h.0.attn.c_proj attn_o |
        gpt_neox.layers.0.attention.query_key_value attn_qkv | model.layers.0.mlp.shared_expert_gate router |
        model.layers.0.mlp.experts.gate_up_proj expert_gate_up | model.layers.61.eh_proj projector |
        model.layers.61.shared_head.head lm_head | mtp.fc projector | mtp.layers.0.self_attn.q_proj attn_q
    """,
    "MLX": """
        model.layers.0.mlp.switch_mlp.gate_proj expert_gate | model.layers.0.mlp.switch_mlp.down_proj expert_down
    """,
    "audio codecs and speech": """
        quantizer.vq.layers.0._codebook.embed codebook | quantizer.quantizers.0.in_proj projector |
        quantizer.quantizers.0.out_proj projector | quantizer.quantizers.0.codebook codebook |
        encoder.model.0.conv.conv conv | encoder.block.1.block.0.block.1 conv |
        decoder.model.1.lstm.weight_ih_l0 rnn_ih | backbone.convnext.0.pwconv1 mlp_up | head.out patch_out |
        wav2vec2.feature_extractor.conv_layers.0.conv conv | wav2vec2.encoder.layers.0.attention.q_proj attn_q |
        wav2vec2.encoder.layers.0.feed_forward.intermediate_dense mlp_up | quantizer.project_q projector |
        ups.0 conv | resblocks.0.convs1.0 conv
    """,
    "timm and torchvision": """
        blocks.0.0.conv_pw conv | blocks.0.0.conv_dw conv | blocks.1.0.se.conv_reduce squeeze_excite |
        stages.0.blocks.0.mlp.fc1 mlp_up | stages.0.blocks.0.conv_dw conv | layers.0.blocks.0.attn.qkv attn_qkv |
        layers.1.downsample.reduction projector | features.1.0.block.3 mlp_up | stem.0 conv | head.fc classifier
    """,
    "Keras, flax and ONNX paths": """
        transformer_block_0/attention/query/kernel:0 attn_q |
        bert/encoder/layer_0/attention/self/query/kernel attn_q |
        bert/encoder/layer_0/intermediate/dense/kernel mlp_up | bert/encoder/layer_0/output/dense/kernel mlp_down |
        bert/embeddings/word_embeddings embed | params/layers_0/attn/query/kernel attn_q |
        /model/layers.0/attn/q_proj/MatMul.weight attn_q | model.layers.0.attn.o_proj.MatMul.weight attn_o |
        model.layers.0.mlp.gate_proj.MatMul.weight mlp_gate
    """,
    "SAM": """
        image_encoder.blocks.0.attn.qkv attn_qkv | image_encoder.blocks.0.attn.rel_pos_h pos_embed |
        mask_decoder.transformer.layers.0.mlp.lin1 mlp_up | mask_decoder.iou_prediction_head.layers.0 regressor |
        mask_decoder.output_hypernetworks_mlps.0.layers.0 regressor |
        mask_decoder.transformer.layers.0.cross_attn_token_to_image.out_proj attn_o
    """,
    "names that say nothing": """
        net.0 other | layers.0 other | fc1 mlp_up | 0 other | decoder.0 other | encoder.0 other
    """,
}


def _named(family):
    pairs = [item.split() for item in FAMILIES[family].replace("\n", " ").split("|")]
    return [(name if "/" in name or "MatMul" in name else f"{name}.weight", role) for name, role in pairs]


@pytest.mark.parametrize("family", FAMILIES)
def test_names_of_families_have_their_roles_without_a_config(family):
    axes = {"conv": 4}
    found = {name: classify(name, axes.get(role, 2), {}).role for name, role in _named(family)}
    assert found == dict(_named(family))


def test_proj_out_is_a_head_of_speech_decoders_and_the_last_layer_of_diffusion_transformers():
    assert classify("proj_out.weight", 2, {"model_type": "whisper"}).role == "lm_head"
    assert classify("proj_out.weight", 2, {"_class_name": "FluxTransformer2DModel"}).role == "patch_out"
    assert classify("down_blocks.0.attentions.0.proj_out.weight", 4, {}).role == "conv"


def test_a_name_of_both_a_kernel_and_a_matrix_is_told_apart_by_the_axes():
    assert classify("stages.0.0.pwconv1.weight", 2, {}).role == "mlp_up"
    assert classify("layers.0.pointwise_conv2.weight", 2, {}).role == "mlp_down"
    assert classify("conv_module.pointwise_conv1.weight", 3, {}).role == "conv"
    assert classify("audio_tower.conv_out.weight", 2, {}).role == "projector"
    assert classify("neck.fusion.projection.weight", 4, {}).role == "conv"
    assert classify("blocks.0.attn.temperature", 3, {}).role == "norm"
    assert classify("blocks.0.something", 3, {}).role == "other"


def test_projections_that_a_module_keeps_as_bare_parameters_have_their_roles():
    names = ("q_proj_weight", "layer.k_proj_weight", "layer.in_proj_weight", "mlp.fc1_weight", "mamba.x_proj_weight")
    assert [classify(name, 2, {}).role for name in names] == ["attn_q", "attn_k", "attn_qkv", "mlp_up", "ssm_x"]


#: Names of GGUF that are vectors, tables of frequencies or kernels whose name says nothing.
_GGUF_OTHER = {
    "rope_freqs", "rope_factors_long", "rope_factors_short", "blk.3.attn_rot_embd", "blk.3.attn_sinks",
    "blk.3.exp_probs_b", "v.std_scale", "v.token_embd.img_break", "a.blk.3.per_dim_k_scale", "v.sam.neck.3",
    "v.sam.net_2", "v.sam.net_3",
}  # fmt: skip


def test_every_tensor_name_of_gguf_has_a_role():
    constants = pytest.importorskip("gguf.constants")
    names = {name.format(bid=3, xid=2) for name in constants.TENSOR_NAMES.values()}
    assert {name for name in names if classify(f"{name}.weight", 2, {}).role == "other"} <= _GGUF_OTHER


def test_names_without_end_are_read_by_their_end_and_in_time():
    long = "model.text_" * 2000 + "." + "layers.0.self_attn.q_proj.weight"
    started = time.perf_counter()
    assert classify(long, 2, {}).role == "attn_q"
    assert time.perf_counter() - started < 1


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


def test_the_stages_of_a_unet_run_from_down_over_the_middle_to_up_in_both_namings():
    diffusers = [
        "up_blocks.0.resnets.0.conv1", "up_blocks.0.upsamplers.0.conv", "mid_block.resnets.0.conv1",
        "mid_block.attentions.0.proj_in", "down_blocks.0.resnets.0.conv1", "down_blocks.0.attentions.0.proj_in",
        "down_blocks.0.resnets.1.conv1", "down_blocks.0.downsamplers.0.conv", "down_blocks.1.resnets.0.conv1",
        "up_blocks.0.resnets.1.conv1", "conv_in", "conv_out", "time_embedding.linear_1",
    ]  # fmt: skip
    assert number_blocks(f"{name}.weight" for name in diffusers) == {
        f"{name}.weight": number for name, number in zip(diffusers[:-3], (4, 5, 3, 3, 0, 0, 1, 1, 2, 5), strict=True)
    }
    original = [
        "output_blocks.0.0.in_layers.2", "middle_block.1.proj_in", "input_blocks.0.0", "input_blocks.1.0.in_layers.2",
        "input_blocks.1.1.transformer_blocks.0.attn1.to_q", "input_blocks.2.0.op", "time_embed.0", "out.2",
    ]  # fmt: skip
    found = number_blocks(f"model.diffusion_model.{name}.weight" for name in original)
    assert list(found.values()) == [4, 3, 0, 1, 1, 2]


def test_the_decoder_of_an_autoencoder_starts_at_its_middle_and_its_highest_stage():
    names = ["decoder.up.0.block.0.conv1", "decoder.up.1.block.0.conv1", "decoder.up.1.block.1.conv1",
             "decoder.up.1.upsample.conv", "decoder.mid.block_1.conv1", "encoder.mid.attn_1.q",
             "encoder.down.0.block.0.conv1", "encoder.down.0.downsample.conv", "encoder.down.1.block.0.conv1",
             "quant_conv"]  # fmt: skip
    assert blocks(*(f"{name}.weight" for name in names)) == [6, 4, 5, 5, 3, 2, 0, 0, 1]


def test_single_stream_blocks_follow_double_stream_blocks():
    assert blocks("single_blocks.0.linear1.weight", "double_blocks.0.img_attn.qkv.weight",
                  "double_blocks.1.img_attn.qkv.weight") == [2, 0, 1]  # fmt: skip
    assert blocks("single_transformer_blocks.1.proj_mlp.weight", "transformer_blocks.18.attn.to_q.weight") == [20, 18]


@pytest.mark.parametrize(
    "name",
    ["altup_projections.0", "altup_unembed_projections.2", "lm_heads.3", "time_embed.0", "t_embedder.mlp.2",
     "label_emb.0.0", "class_embed.4", "bbox_embed.0.layers.1", "mask_decoder.output_hypernetworks_mlps.0.layers.1",
     "quantizer.quantizers.0.in_proj", "feature_extractor.conv_layers.0.conv", "patch_embeddings.0.proj",
     "multi_modal_projector.layers.0.fc", "codebooks.1", "controlnet_blocks.3", "readout_projects.0.0",
     "context_embedder.token_refiner.refiner_blocks.0.attn.to_q"],
)  # fmt: skip
def test_lists_that_are_no_blocks_do_not_shift_the_blocks(name):
    real = ["model.layers.0.self_attn.q_proj.weight", "model.layers.1.self_attn.q_proj.weight",
            "model.layers.1.mlp.experts.3.w1.weight", "model.layers.0.attn.to_out.0.weight",
            "model.layers.0.ff.net.2.weight"]  # fmt: skip
    for parts in ([f"{name}.weight", *real], [*real, f"model.{name}.weight", f"{name}.bias"]):
        assert number_blocks(parts) == dict(zip(real, (0, 1, 1, 0, 0), strict=True))


def test_two_children_that_repeat_the_same_names_are_blocks_whatever_their_list_is_called():
    assert blocks("encoder.mixers.0.token.fc.weight", "encoder.mixers.1.token.fc.weight") == [0, 1]
    assert blocks("backbone.0.conv.weight", "backbone.1.conv.weight", "backbone.2.other.weight") == [0, 1, 2]


def test_the_numbered_layers_of_a_plain_network_are_its_blocks():
    assert blocks("net.0.weight", "net.0.bias", "net.2.weight", "net.4.weight") == [0, 0, 2, 4]
    assert blocks("features.0.weight", "features.3.weight", "classifier.0.bias") == [0, 3]


def test_the_layers_of_a_t5_block_are_one_block_and_the_layers_of_a_stage_are_many():
    t5 = ["encoder.block.0.layer.0.SelfAttention.q", "encoder.block.0.layer.1.DenseReluDense.wi",
          "encoder.block.1.layer.0.SelfAttention.q", "encoder.block.1.layer.1.DenseReluDense.wi",
          "decoder.block.0.layer.2.DenseReluDense.wi"]  # fmt: skip
    assert blocks(*(f"{name}.weight" for name in t5)) == [0, 0, 1, 1, 2]
    efficient = ["blocks.0.0.conv_pw", "blocks.1.0.conv_pw", "blocks.1.1.conv_pw", "blocks.2.0.conv_pw"]
    assert blocks(*(f"{name}.weight" for name in efficient)) == [0, 1, 2, 3]


def test_what_shrinks_between_stages_goes_to_the_side_it_stands_on():
    at_the_end = [f"layers.{s}.blocks.{b}.attn.qkv.weight" for s in (0, 1) for b in (0, 1)]
    assert blocks(*at_the_end, "layers.0.downsample.reduction.weight") == [0, 1, 2, 3, 1]
    assert blocks(*at_the_end, "layers.1.downsample.reduction.weight") == [0, 1, 2, 3, 2]


def test_heads_of_several_next_tokens_follow_all_other_blocks():
    assert blocks("mtp.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight") == [2, 1]


def test_lists_of_one_number_make_one_block_where_a_model_keeps_attention_and_feed_forward_apart():
    assert blocks("transformer.attentions.1.q_lin.weight", "transformer.ffns.1.lin1.weight") == [1, 1]


def test_the_numbers_do_not_depend_on_the_order_of_the_file():
    parts = ("down_blocks", "up_blocks", "text.layers", "vision.layers", "mtp.h")
    names = [f"{part}.{n}.{leaf}.weight" for part in parts for n in range(11) for leaf in ("a", "b")]
    assert number_blocks(names) == number_blocks(sorted(names)) == number_blocks(reversed(names))
