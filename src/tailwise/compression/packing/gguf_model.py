"""What llama.cpp has to know of a model beside its weights: names, order of rows, sizes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint

#: `model_type` → llama.cpp's architecture.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
_ROPE = ("default", "linear", "llama3")


def reasons(checkpoint: Checkpoint) -> Iterator[str]:
    """Why a model cannot be written."""
    config = checkpoint.config
    kind = config.get("model_type")
    if kind not in ARCHITECTURES:
        yield f"GGUF is written for {', '.join(ARCHITECTURES)}, and this is {kind or 'of no known kind'}"
        return
    lost = [name for name in ("hidden_size", "num_hidden_layers", "num_attention_heads") if name not in config]
    if lost:
        yield f"config.json does not say {', '.join(lost)}"
        return
    rope = rope_of(config)
    if rope["rope_type"] not in _ROPE:
        yield f"rotary positions of the kind {rope['rope_type']!r} are not written; {', '.join(_ROPE)} are"
    nameless = [name for name in checkpoint.tensors if gguf_name(name, config) is None]
    if nameless:
        more = f" and {len(nameless) - 3} more" if len(nameless) > 3 else ""
        yield f"llama.cpp has no tensor for {', '.join(nameless[:3])}{more}"
    wide = [spec.name for spec in checkpoint.tensors.values() if spec.dtype not in ("F32", "F16", "BF16")]
    if wide:
        yield f"{wide[0]} is stored as {checkpoint.tensors[wide[0]].dtype}; F32, F16 and BF16 are written"


def gguf_name(name: str, config: Mapping[str, Any]) -> str | None:
    """llama.cpp's name of a stored tensor; None where it has none."""
    stem, _, suffix = name.rpartition(".")
    if suffix not in ("weight", "bias"):
        return None
    architecture = ARCHITECTURES[config["model_type"]]
    mapped = _names(architecture, int(config["num_hidden_layers"])).get_name(stem)
    return None if mapped is None else f"{mapped}.{suffix}"


@lru_cache(maxsize=4)
def _names(architecture: str, blocks: int) -> Any:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    return get_tensor_name_map(next(arch for arch, name in MODEL_ARCH_NAMES.items() if name == architecture), blocks)


def heads_of(name: str, config: Mapping[str, Any]) -> int | None:
    """Heads whose rows llama.cpp has in another order; None for all other tensors.

    Llama's query and key turn pairs (i, i + d/2) in transformers, and neighbours (2i, 2i + 1) in llama.cpp.
    """
    if ARCHITECTURES[config["model_type"]] != "llama":
        return None
    heads = int(config["num_attention_heads"])
    if ".q_proj." in name:
        return heads
    return int(config.get("num_key_value_heads") or heads) if ".k_proj." in name else None


def turned(rows: torch.Tensor, heads: int | None) -> torch.Tensor:
    """Rows in llama.cpp's order."""
    if heads is None:
        return rows
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def turned_back(rows: torch.Tensor, heads: int | None) -> torch.Tensor:
    """The inverse of `turned`."""
    if heads is None:
        return rows
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).transpose(1, 2).reshape(rows.shape)


def rope_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """`rope_type`, `rope_theta`, `factor` and the like, wherever the config has them."""
    rope = {**(config.get("rope_scaling") or {}), **(config.get("rope_parameters") or {})}
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def head_dim(config: Mapping[str, Any]) -> int:
    """Entries of a head."""
    return int(config.get("head_dim") or int(config["hidden_size"]) // int(config["num_attention_heads"]))


def add_sizes(writer: Any, config: Mapping[str, Any]) -> None:
    """The hyperparameters."""
    heads, rope, width = int(config["num_attention_heads"]), rope_of(config), head_dim(config)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_embedding_length(int(config["hidden_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(float(rope["rope_theta"]))
    if rope["rope_type"] == "linear":
        import gguf

        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(float(rope["factor"]))
    for key, add in (
        ("max_position_embeddings", writer.add_context_length),
        ("intermediate_size", writer.add_feed_forward_length),
        ("vocab_size", writer.add_vocab_size),
    ):
        if config.get(key) is not None:
            add(int(config[key]))
    writer.add_layer_norm_rms_eps(float(config.get("rms_norm_eps", 1e-6)))


def rope_factors(config: Mapping[str, Any]) -> torch.Tensor | None:
    """What Llama 3.1 divides each frequency by, (head_dim/2,), which llama.cpp reads as a tensor."""
    rope = rope_of(config)
    if rope["rope_type"] != "llama3":
        return None
    width = head_dim(config)
    lengths = 2 * math.pi * rope["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float64) / width)
    low, high, factor = (float(rope[key]) for key in ("low_freq_factor", "high_freq_factor", "factor"))
    context = float(rope["original_max_position_embeddings"])
    smooth = ((context / lengths - low) / (high - low)).clamp(0, 1)  # 1 keeps a frequency, 0 divides it
    factors: torch.Tensor = (1 / ((1 - smooth) / factor + smooth)).to(torch.float32)
    return factors
