"""Every architecture of transformers that the role table names, built tiny and without weights' files."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers as T

from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.matrices import group
from tailwise.checkpoints.roles import ROLES

SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
TOKENS = {"vocab_size": 64, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
PLAIN = {**SIZES, **TOKENS}
GQA = {**PLAIN, "num_key_value_heads": 2}
HEAD8 = {**GQA, "head_dim": 8}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}
EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
SEQ2SEQ = {
    **TOKENS, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "decoder_start_token_id": 0,
}  # fmt: skip
VISION = {**SIZES, "image_size": 32, "patch_size": 8}
MLA = {
    **PLAIN, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2,
    "moe_intermediate_size": 24, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8,
    "v_head_dim": 8, "first_k_dense_replace": 1,
}  # fmt: skip
NEXT = {
    **HEAD8, **EXPERTS, "num_hidden_layers": 4, "shared_expert_intermediate_size": 24,
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}  # fmt: skip

#: name → (config class, arguments, model class or None for the causal language model, number of blocks)
MODELS = {
    "llama": ("LlamaConfig", GQA, None, 2),
    "mistral": ("MistralConfig", GQA, None, 2),
    "qwen2": ("Qwen2Config", GQA, None, 2),
    "qwen3": ("Qwen3Config", HEAD8, None, 2),
    "gemma": ("GemmaConfig", HEAD8, None, 2),
    "gemma2": ("Gemma2Config", HEAD8, None, 2),
    "gemma3": ("Gemma3TextConfig", HEAD8, None, 2),
    "phi": ("PhiConfig", GQA, None, 2),
    "phi3": ("Phi3Config", GQA, None, 2),
    "gpt2": ("GPT2Config", GPT2, None, 2),
    "gptj": ("GPTJConfig", {**GPT2, "rotary_dim": 8}, None, 2),
    "gpt_bigcode": ("GPTBigCodeConfig", GPT2, None, 2),
    "gpt_bigcode_mha": ("GPTBigCodeConfig", {**GPT2, "multi_query": False}, None, 2),
    "gpt_neox": ("GPTNeoXConfig", PLAIN, None, 2),
    "opt": ("OPTConfig", {**PLAIN, "ffn_dim": 48, "word_embed_proj_dim": 16}, None, 2),
    "falcon": ("FalconConfig", PLAIN, None, 2),
    "falcon_new": ("FalconConfig", {**PLAIN, "new_decoder_architecture": True, "num_kv_heads": 2}, None, 2),
    "falcon_old": ("FalconConfig", {**PLAIN, "multi_query": False}, None, 2),
    "bloom": ("BloomConfig", {"hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 64}, None, 2),
    "mpt": ("MptConfig", {"d_model": 32, "n_heads": 4, "n_layers": 2, "vocab_size": 64}, None, 2),
    "glm4": ("Glm4Config", HEAD8, None, 2),
    "starcoder2": ("Starcoder2Config", GQA, None, 2),
    "mixtral": ("MixtralConfig", {**GQA, "num_local_experts": 3}, None, 2),
    "qwen2_moe": ("Qwen2MoeConfig", {**GQA, **EXPERTS, "shared_expert_intermediate_size": 40}, None, 2),
    "qwen3_moe": ("Qwen3MoeConfig", {**HEAD8, **EXPERTS}, None, 2),
    "olmoe": ("OlmoeConfig", {**GQA, "num_experts": 3, "num_experts_per_tok": 2}, None, 2),
    "deepseek_v2": ("DeepseekV2Config", {**MLA, "q_lora_rank": None}, None, 2),
    "deepseek_v3": ("DeepseekV3Config", {**MLA, "q_lora_rank": 16, "n_group": 1, "topk_group": 1}, None, 2),
    "gpt_oss": ("GptOssConfig", {**HEAD8, "num_local_experts": 3}, None, 2),
    "llama4": ("Llama4TextConfig", {**HEAD8, "num_local_experts": 2, "intermediate_size_mlp": 48}, None, 2),
    "qwen3_next": ("Qwen3NextConfig", NEXT, None, 4),
    "mamba": ("MambaConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2}, None, 2),
    "mamba2": (
        "Mamba2Config",
        {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "num_heads": 8, "head_dim": 8, "n_groups": 1},
        None, 2,
    ),
    "rwkv": ("RwkvConfig", {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2}, None, 2),
    "recurrent_gemma": ("RecurrentGemmaConfig", {**GQA, "num_hidden_layers": 3, "lru_width": 32}, None, 3),
    "bert": ("BertConfig", PLAIN, "BertForSequenceClassification", 2),
    "bert_mlm": ("BertConfig", PLAIN, "BertForMaskedLM", 2),
    "roberta": ("RobertaConfig", PLAIN, "RobertaForMaskedLM", 2),
    "distilbert": (
        "DistilBertConfig",
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "vocab_size": 64},
        "DistilBertForMaskedLM", 2,
    ),
    "deberta": ("DebertaV2Config", PLAIN, "DebertaV2ForMaskedLM", 2),
    "electra": ("ElectraConfig", {**PLAIN, "embedding_size": 16}, "ElectraForMaskedLM", 2),
    "albert": ("AlbertConfig", {**PLAIN, "embedding_size": 16}, "AlbertForMaskedLM", 1),
    "modernbert": ("ModernBertConfig", PLAIN, "ModernBertForMaskedLM", 2),
    "vit": ("ViTConfig", VISION, "ViTForImageClassification", 2),
    "dinov2": ("Dinov2Config", VISION, "Dinov2Model", 2),
    "swin": (
        "SwinConfig",
        {"embed_dim": 16, "depths": [1, 2], "num_heads": [2, 4], "image_size": 32, "patch_size": 4,
         "window_size": 4},
        "SwinForImageClassification", 3,
    ),
    "clip": (
        "CLIPConfig", {"text_config": PLAIN, "vision_config": VISION, "projection_dim": 16}, "CLIPModel", 4,
    ),
    "whisper": ("WhisperConfig", {**SEQ2SEQ, "num_mel_bins": 16}, "WhisperForConditionalGeneration", 5),
    "bart": ("BartConfig", SEQ2SEQ, "BartForConditionalGeneration", 5),
    "t5": (
        "T5Config",
        {"d_model": 32, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4, "d_kv": 8,
         "vocab_size": 64, "feed_forward_proj": "gated-gelu"},
        "T5ForConditionalGeneration", 5,
    ),
    "resnet": (
        "ResNetConfig", {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [1, 2]},
        "ResNetForImageClassification", 3,
    ),
    "convnext": (
        "ConvNextConfig", {"hidden_sizes": [16, 32], "depths": [1, 2], "num_stages": 2},
        "ConvNextForImageClassification", 3,
    ),
}  # fmt: skip


def build(name: str, device: str = "meta") -> torch.nn.Module:
    config_class, arguments, model_class, _ = MODELS[name]
    with warnings.catch_warnings():
        # transformers warns about optional kernels and token ids, which differ by version
        warnings.filterwarnings("ignore", module=r"transformers\.")
        config = getattr(T, config_class)(**arguments)
        torch.manual_seed(0)
        with torch.device(device):
            maker = T.AutoModelForCausalLM.from_config if model_class is None else getattr(T, model_class)
            return maker(config)


@pytest.mark.parametrize("name", MODELS)
def test_names_every_tensor_once_and_knows_every_block_matrix(name):
    model = build(name)
    checkpoint = MemoryCheckpoint.of_module(model)
    found, rest = group(checkpoint, conv="flatten", min_evals=2)

    stored = [tensor for source in found for tensor in source.tensors]
    listed = [unmeasured.name.partition("#")[0] for unmeasured in rest]
    named = set(stored) | {n for n in listed if n in checkpoint.tensors}
    assert named == set(checkpoint.tensors)
    assert not set(stored) & set(listed), "a tensor is both measured and listed"
    names = [source.name for source in found]
    assert len(names) == len(set(names))

    assert {source.role for source in found} <= set(ROLES)
    assert [source.name for source in found if source.role == "other"] == []
    blocks = {source.block for source in found} - {None}
    assert blocks == set(range(MODELS[name][3]))


FUSED = [
    "phi3", "gpt_neox", "falcon", "falcon_new", "falcon_old", "bloom", "mpt", "gpt2", "gpt_bigcode",
    "gpt_bigcode_mha", "modernbert", "glm4", "mixtral", "gpt_oss", "llama4", "olmoe",
]  # fmt: skip


@pytest.mark.parametrize("name", FUSED)
def test_leaves_nothing_fused(name):
    found, _ = group(MemoryCheckpoint.of_module(build(name)), conv="flatten", min_evals=2)
    roles = {source.role for source in found}
    assert {"attn_q", "attn_k", "attn_v"} <= roles
    assert not {role for role in roles if role.endswith(("qkv", "gate_up"))}
    assert not any(source.note for source in found)
