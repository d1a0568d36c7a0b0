"""Models of transformers, small enough to walk through in milliseconds, saved as they would be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

WIDTH, BLOCKS, VOCABULARY = 32, 3, 96
_SIZES = {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "num_attention_heads": 4, "intermediate_size": 48}
_TEXT = {**_SIZES, "vocab_size": VOCABULARY, "max_position_embeddings": 64}
_IMAGES = {**_SIZES, "image_size": 16, "patch_size": 4, "num_labels": 3}
_CONVNEXT = {"hidden_sizes": [8, 16], "depths": [1, 2], "num_stages": 2, "image_size": 16, "patch_size": 2}

#: name → (class, class of the config, sizes)
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "LlamaConfig", {**_TEXT, "num_key_value_heads": 2}),
    "gpt2": ("GPT2LMHeadModel", "GPT2Config", {"n_embd": WIDTH, "n_layer": BLOCKS, "n_head": 4, "n_positions": 64,
                                               "vocab_size": VOCABULARY, "bos_token_id": 0, "eos_token_id": 0}),
    "opt": ("OPTForCausalLM", "OPTConfig", {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS, "ffn_dim": 48,
                                            "num_attention_heads": 4, "vocab_size": VOCABULARY,
                                            "word_embed_proj_dim": WIDTH, "max_position_embeddings": 64}),
    "qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {**_TEXT, "num_key_value_heads": 2}),
    "gemma3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {**_TEXT, "num_key_value_heads": 2, "head_dim": 8,
                                                         "sliding_window": 4, "layer_types": [
                                                             "sliding_attention", "full_attention",
                                                             "sliding_attention"]}),
    "gptneox": ("GPTNeoXForCausalLM", "GPTNeoXConfig", _TEXT),
    "falcon": ("FalconForCausalLM", "FalconConfig", {"hidden_size": WIDTH, "num_hidden_layers": BLOCKS,
                                                     "num_attention_heads": 4, "vocab_size": VOCABULARY}),
    "bert": ("BertForMaskedLM", "BertConfig", _TEXT),
    "vit": ("ViTForImageClassification", "ViTConfig", _IMAGES),
    "deit": ("DeiTForImageClassification", "DeiTConfig", _IMAGES),
    "convnext": ("ConvNextForImageClassification", "ConvNextConfig", {**_CONVNEXT, "num_labels": 3}),
}  # fmt: skip

#: Those that cannot be walked through.
OTHERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "albert": ("AlbertForMaskedLM", "AlbertConfig", {**_TEXT, "embedding_size": 16}),
    "mixtral": ("MixtralForCausalLM", "MixtralConfig", {**_TEXT, "num_key_value_heads": 2, "num_local_experts": 2,
                                                        "num_experts_per_tok": 1}),
    "t5": ("T5ForConditionalGeneration", "T5Config", {"d_model": WIDTH, "d_kv": 8, "d_ff": 48, "num_layers": 2,
                                                      "num_heads": 4, "vocab_size": VOCABULARY,
                                                      "decoder_start_token_id": 0}),
}  # fmt: skip


def built(kind: str, seed: int = 0) -> torch.nn.Module:
    """A model with random weights large enough to matter."""
    import transformers

    name, config, sizes = (KINDS | OTHERS)[kind]
    torch.manual_seed(seed)
    model = getattr(transformers, name)(getattr(transformers, config)(**sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0.0, 0.2)
    return model


def saved(kind: str, folder: Path, *, dtype: torch.dtype = torch.float32, **how: Any) -> Path:
    built(kind).to(dtype).save_pretrained(folder, **how)
    return folder


def inputs_for(kind: str, count: int = 6, window: int = 24) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    if kind in ("vit", "deit", "convnext"):
        return {"pixel_values": torch.randn(count, 3, 16, 16, generator=generator)}
    return {"input_ids": torch.randint(0, VOCABULARY, (count, window), generator=generator)}


def plan_for(folder: Path, **request: Any):
    """A plan for a saved model, from its audit."""
    from tailwise.audits.run import audit
    from tailwise.compression.making.make import plan_prune
    from tailwise.compression.making.request import Request

    request.setdefault("sparsity", None if ":" in request.get("pattern", "") else 0.5)
    return plan_prune(audit(folder), Request(**request))


def quantize(plan, model, output, options=None, progress=None):
    """`apply`, with its options by place."""
    from tailwise.compression.applying.apply import apply

    return apply(plan, model, output, options=options, progress=progress)


def learnable(window: int, count: int = 60) -> np.ndarray:
    """Tokens that a model can learn: each is the one before it plus one, but for one in ten; `count` windows."""
    steps = np.where(np.random.default_rng(0).random(count * window) < 0.1, 7, 1)
    return np.cumsum(steps) % VOCABULARY
