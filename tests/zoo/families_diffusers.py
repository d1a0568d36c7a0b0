"""Diffusion models of diffusers: U-nets, autoencoders, transformers, adapters of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.entry import Entry, Specimen
from zoo.specimens import of_pretrained

UNETS, CODERS, DITS = "diffusers: U-nets", "diffusers: autoencoders", "diffusers: transformers"

HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
LAYERS = {**HEADS, "num_layers": 2}
JOINT = {**LAYERS, "joint_attention_dim": 24}
FLUX = {**JOINT, "in_channels": 8, "num_single_layers": 2, "axes_dims_rope": (4, 6, 6)}
SIZED = {"block_out_channels": (16, 32), "norm_num_groups": 8, "layers_per_block": 1}
CROSS = {**SIZED, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 24,
         "attention_head_dim": 8}  # fmt: skip
UP = {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D")}
#: Opened as an entry's options
NEW = {"since": "unreleased"}
KL = {"block_out_channels": (16, 32), "down_block_types": ("DownEncoderBlock2D",) * 2,
      "up_block_types": ("UpDecoderBlock2D",) * 2, "norm_num_groups": 8}  # fmt: skip


def diffuser(kind: str, model: str, config: Mapping[str, Any], blocks: int | None = None, **options: Any) -> Entry:
    """The line of a model class of diffusers with a small config."""

    def build(folder: Path) -> Specimen:
        import diffusers

        torch.manual_seed(0)
        return of_pretrained(getattr(diffusers, model)(**config), folder)

    return Entry(options.pop("name", model), kind, build, "diffusers", blocks, **options)


ENTRIES = [
    diffuser(UNETS, "UNet2DConditionModel", {**CROSS, **UP}, **NEW),
    diffuser(UNETS, "UNet2DConditionModel", {**CROSS, **UP, "use_linear_projection": True},
             name="UNet2DConditionModel, linear", **NEW),
    diffuser(UNETS, "UNet2DModel", {**SIZED, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
                                    "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}, **NEW),
    diffuser(UNETS, "UNet1DModel", {"block_out_channels": (16, 16, 32)}, **NEW),
    diffuser(UNETS, "UNet3DConditionModel", {**SIZED, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
                                             "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
                                             "cross_attention_dim": 24, "attention_head_dim": 8}, **NEW),
    diffuser(UNETS, "ControlNetModel", {**CROSS, "conditioning_embedding_out_channels": (8, 16)}, **NEW),
    diffuser(CODERS, "AutoencoderKL", KL, **NEW),
    diffuser(CODERS, "AsymmetricAutoencoderKL", {
        "down_block_out_channels": (16, 32), "up_block_out_channels": (16, 32), "norm_num_groups": 8,
        "down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}, **NEW),
    diffuser(CODERS, "VQModel", {**KL, "num_vq_embeddings": 24}, since="unreleased"),
    diffuser(CODERS, "AutoencoderTiny", {
        "encoder_block_out_channels": (16, 16), "decoder_block_out_channels": (16, 16),
        "num_encoder_blocks": (1, 2), "num_decoder_blocks": (2, 1)}),
    diffuser(CODERS, "AutoencoderOobleck", {
        "encoder_hidden_size": 8, "downsampling_ratios": [2, 4], "channel_multiples": [1, 2], "decoder_channels": 8,
        "decoder_input_channels": 8}, **NEW),
    diffuser(CODERS, "AutoencoderKLWan", {"base_dim": 8, "dim_mult": [1, 2], "num_res_blocks": 1,
                                          "temperal_downsample": [True], "z_dim": 16}, since="unreleased"),
    diffuser(DITS, "DiTTransformer2DModel", {**LAYERS, "sample_size": 8, "norm_num_groups": 8}, 2),
    diffuser(DITS, "PixArtTransformer2DModel", {**LAYERS, "sample_size": 8, "cross_attention_dim": 32,
                                                "caption_channels": 24, "norm_num_groups": 8}, 2),
    diffuser(DITS, "SD3Transformer2DModel", {**JOINT, "caption_projection_dim": 32, "pooled_projection_dim": 24,
                                             "sample_size": 8, "pos_embed_max_size": 8,
                                             "dual_attention_layers": (0,)}, 2),
    diffuser(DITS, "FluxTransformer2DModel", {**FLUX, "pooled_projection_dim": 24}, 4, **NEW),
    diffuser(DITS, "Flux2Transformer2DModel", {**FLUX, "timestep_guidance_channels": 32,
                                               "axes_dims_rope": (4, 4, 4, 4)}, 4, **NEW),
    diffuser(DITS, "ChromaTransformer2DModel", {**FLUX, "approximator_num_channels": 16,
                                                "approximator_hidden_dim": 32, "approximator_layers": 2}, **NEW),
    diffuser(DITS, "AuraFlowTransformer2DModel", {
        **HEADS, "num_mmdit_layers": 1, "num_single_dit_layers": 2, "joint_attention_dim": 24,
        "caption_projection_dim": 32, "sample_size": 8, "pos_embed_max_size": 16}, 3),
    diffuser(DITS, "WanTransformer3DModel", {**LAYERS, "text_dim": 24, "freq_dim": 32, "ffn_dim": 48}, 2),
    diffuser(DITS, "Lumina2Transformer2DModel", {
        "hidden_size": 32, "num_layers": 2, "num_refiner_layers": 1, "num_attention_heads": 4, "num_kv_heads": 2,
        "multiple_of": 16, "cap_feat_dim": 24, "axes_dim_rope": (4, 2, 2), "axes_lens": (8, 8, 8)}, 4, **NEW),
    diffuser(DITS, "HunyuanDiT2DModel", {
        **LAYERS, "in_channels": 4, "patch_size": 2, "hidden_size": 32, "cross_attention_dim": 24,
        "cross_attention_dim_t5": 20, "pooled_projection_dim": 12, "text_len": 8, "text_len_t5": 8, "sample_size": 8},
        2, since="unreleased"),
    diffuser(DITS, "QwenImageTransformer2DModel", {**JOINT, "in_channels": 8, "axes_dims_rope": (4, 6, 6)}, 2),
    diffuser(DITS, "LTXVideoTransformer3DModel", {**LAYERS, "in_channels": 8, "out_channels": 8,
                                                  "cross_attention_dim": 32, "caption_channels": 24}, 2),
    diffuser(DITS, "CogVideoXTransformer3DModel", {**LAYERS, "time_embed_dim": 24, "text_embed_dim": 20,
                                                   "sample_width": 8, "sample_height": 8}, 2),
    diffuser(DITS, "CogView4Transformer2DModel", {**LAYERS, "text_embed_dim": 24, "time_embed_dim": 32,
                                                  "condition_dim": 16, "rope_axes_dim": (8, 8)}, 2),
    diffuser(DITS, "SanaTransformer2DModel", {
        **LAYERS, "in_channels": 8, "out_channels": 8, "num_cross_attention_heads": 2, "cross_attention_head_dim": 16,
        "cross_attention_dim": 32, "caption_channels": 24, "sample_size": 8}, 2),
    diffuser(DITS, "MochiTransformer3DModel", {**LAYERS, "pooled_projection_dim": 24, "text_embed_dim": 20,
                                               "time_embed_dim": 16, "in_channels": 8, "max_sequence_length": 8}, 2),
    diffuser(DITS, "ZImageTransformer2DModel", {
        "dim": 32, "n_layers": 2, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2, "cap_feat_dim": 24,
        "axes_dims": [4, 6, 6], "axes_lens": [8, 8, 8]}, 4, **NEW),
    diffuser(DITS, "StableAudioDiTModel", {
        **LAYERS, "num_key_value_attention_heads": 1, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 24,
        "time_proj_dim": 16, "global_states_input_dim": 20, "cross_attention_input_dim": 12, "sample_size": 8},
        2, **NEW),
    diffuser(DITS, "PriorTransformer", {**LAYERS, "embedding_dim": 24, "num_embeddings": 9}, 2),
]  # fmt: skip
