"""Families of transformers as tiny models with random weights: what a contract is held against."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from zoo.families_text import LATENT, LINEAR
from zoo.tiny import _head_of, tiny_config

VOCABULARY = 64
WINDOWS = torch.randint(1, 60, (8, 48), generator=torch.Generator().manual_seed(1))


@dataclass(frozen=True)
class Family:
    """One kind of model."""

    name: str
    model_type: str
    values: Mapping[str, Any] = field(default_factory=dict)
    head: str | None = None
    inputs: str = "input_ids"


def _families(*named: str | tuple[str, Mapping[str, Any]]) -> dict[str, Family]:
    found = [(item, {}) if isinstance(item, str) else item for item in named]
    return {name: Family(name, name.partition(", ")[0], dict(values)) for name, values in found}


_ROPE = {"text_config__rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}}

FAMILIES = _families(
    # one tower, one layout
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "stablelm", "granite",
    "smollm3", "phi", "phi3", "glm", "glm4", "cohere", "cohere2", "starcoder2", "helium", "persimmon", "arcee",
    "apertus", "ernie4_5", "exaone4", "seed_oss",
    # older
    "gpt2", ("gptj", {"rotary_dim": 4}), "gpt_neox", "gpt_bigcode", "opt", "bloom", "mpt", "xglm",
    ("gpt_neo", {"attention_types": [[["global", "local"], 1]]}),
    "falcon", ("falcon, by head", {"multi_query": False, "num_kv_heads": 4}),
    ("falcon, grouped", {"new_decoder_architecture": True, "num_kv_heads": 2}),
    # states
    "mamba", "falcon_mamba", ("mamba2", {"num_heads": 8, "n_groups": 1}), ("rwkv", {"attention_hidden_size": 32}),
    "lfm2", "recurrent_gemma",
    # experts
    "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", ("deepseek_v2", LATENT), ("deepseek_v3", LATENT), "gpt_oss",
    "granitemoe", "phimoe", "llama4_text", "glm4_moe", "ernie4_5_moe", ("qwen3_next", LINEAR), "jamba",
    # several towers
    "llava", "gemma3", "paligemma", "mistral3", "internvl", "idefics3", ("qwen2_vl", _ROPE), ("qwen2_5_vl", _ROPE),
    ("qwen3_vl", _ROPE),
)  # fmt: skip
FAMILIES["bert"] = Family("bert", "bert", head="BertForMaskedLM")
FAMILIES["t5"] = Family("t5", "t5")
FAMILIES["vit"] = Family("vit", "vit", inputs="pixel_values")
FAMILIES |= _families(
    ("codegen", {"rotary_dim": 4}), "nanochat",
    ("minicpm3", {"kv_lora_rank": 16, "q_lora_rank": 16, "num_key_value_heads": 4, "head_dim": 4}),
)  # fmt: skip


def inputs_of(family: Family) -> dict[str, torch.Tensor]:
    """What calibrates it, by name."""
    if family.inputs == "pixel_values":
        return {"pixel_values": torch.randn(8, 3, 32, 32, generator=torch.Generator().manual_seed(1))}
    if family.model_type == "t5":
        return {"input_ids": WINDOWS, "decoder_input_ids": WINDOWS}
    return {"input_ids": WINDOWS}


def built(family: Family, seed: int = 0) -> nn.Module:
    """A model whose every weight matters, in float32."""
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optional kernels, token ids
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        config = tiny_config(family.model_type, family.values)
        if family.inputs == "pixel_values":
            config.num_labels = 3
        torch.manual_seed(seed)
        model = getattr(transformers, family.head or _head_of(family.model_type))(config).float().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "conv" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif name.endswith("bias") or "bias" in name.rpartition(".")[2]:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def saved(family: Family, folder: Path) -> nn.Module:
    """Save it as its family is saved; the model."""
    model = built(family)
    model.save_pretrained(folder)
    return model


def loaded(model: nn.Module, folder: Path) -> nn.Module:
    """What plain transformers makes of a folder. `AssertionError` where a weight was not found, or found no place."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found, info = type(model).from_pretrained(folder, output_loading_info=True)
    wrong = {key: sorted(map(str, value))[:3] for key, value in info.items() if value and "rror" not in key}
    assert not wrong, wrong
    return found.float().eval()


def outputs(model: nn.Module, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Logits of the first two windows, or images."""
    with torch.no_grad():
        found = model(**{name: value[:2] for name, value in inputs.items()}, **_no_cache(model))
    logits: torch.Tensor = found.logits
    return logits


def _no_cache(model: nn.Module) -> dict[str, bool]:
    return {} if model.main_input_name == "pixel_values" else {"use_cache": False}
