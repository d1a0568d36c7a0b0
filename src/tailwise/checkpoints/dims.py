"""What a model's config says about heads, hidden and inner sizes, whatever names the family uses for them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_HEADS = ("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads", "attention.head_count")
_KV_HEADS = ("num_key_value_heads", "num_kv_heads", "n_head_kv", "kv_n_heads", "multi_query_group_num",
             "attention.head_count_kv")  # fmt: skip
_HEAD_DIM = ("head_dim", "kv_channels", "d_kv", "attention.key_length")
_HIDDEN = ("hidden_size", "n_embd", "d_model", "dim", "embedding_length")
_INNER = ("intermediate_size", "moe_intermediate_size", "ffn_dim", "n_inner", "d_ff", "ffn_hidden_size",
          "feed_forward_length", "expert_feed_forward_length", "intermediate_size_mlp",
          "shared_expert_intermediate_size", "shared_intermediate_size")  # fmt: skip
_VISION = re.compile(r"(?:^|[._])(?:vision|visual|image|v\.blk)")
_AUDIO = re.compile(r"(?:^|[._])audio")


@dataclass(frozen=True)
class Dims:
    """Sizes of one tower of a model; None or empty where the config does not say."""

    model_type: str
    heads: int | None
    kv_heads: int | None
    head_dim: int | None
    hidden: int | None
    inner: frozenset[int]
    grouped: bool | None  # Falcon: whether q, k, v alternate by group of heads; None for other families


def tower_of(name: str) -> tuple[bool, ...]:
    """What of a tensor's name its sizes depend on: tensors for which this is the same have the same sizes."""
    return _VISION.search(name) is not None, _AUDIO.search(name) is not None, "blk." in name


def dims_for(name: str, config: Mapping[str, Any]) -> Dims:
    """The sizes that hold for the tensor `name`; in models of several towers, those of its own tower."""
    part = _tower(name, config)
    heads, hidden = _first(part, _HEADS), _first(part, _HIDDEN)
    head_dim = _first(part, _HEAD_DIM)
    if head_dim is None and heads and hidden and hidden % heads == 0:
        head_dim = hidden // heads
    inner = {part[key] for key in _INNER if isinstance(part.get(key), int)}
    kind = str(part.get("model_type", ""))
    # GGUF tensors (`blk.`) are stacked and their metadata counts the heads, whatever the family did before.
    kv_heads, grouped = _kv_heads(part, "" if "blk." in name else kind, heads)
    return Dims(kind, heads, kv_heads, head_dim, hidden, frozenset(inner), grouped)


def _kv_heads(part: Mapping[str, Any], kind: str, heads: int | None) -> tuple[int | None, bool | None]:
    if kind in ("falcon", "RefinedWeb", "RefinedWebModel"):
        if part.get("new_decoder_architecture"):
            return _first(part, _KV_HEADS) or heads, True
        return (1, False) if part.get("multi_query", True) else (heads, True)
    if (
        kind == "chatglm"
        and not part.get("multi_query_attention")
        and ("inner_hidden_size" in part or "position_encoding_2d" in part)
    ):
        return heads, True  # the first ChatGLM, by head
    if kind == "phi3small":
        return _first(part, _KV_HEADS) or heads, True
    if kind == "gpt_bigcode":
        return (1, False) if part.get("multi_query", True) else (heads, True)
    return _first(part, _KV_HEADS) or heads, None


def _tower(name: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    """The sub-config of the tower that `name` belongs to, over the values of the whole."""
    wanted = ("vision_config",) if _VISION.search(name) else ("audio_config",) if _AUDIO.search(name) else ()
    for key in (*wanted, "text_config", "llm_config", "language_config"):
        if isinstance(sub := config.get(key), Mapping):
            return _flat({**config, **sub})
    return _flat(config)


def _flat(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """`attn_config` and `ffn_config` opened (MPT, DBRX), and GGUF's `<arch>.` prefix removed."""
    flat = dict(config)
    for key in ("attn_config", "ffn_config"):
        if isinstance(sub := config.get(key), Mapping):
            flat = {**sub, **flat}
    arch = config.get("general.architecture")
    if isinstance(arch, str):
        flat.update({k.removeprefix(f"{arch}."): v for k, v in config.items() if k.startswith(f"{arch}.")})
        flat.setdefault("model_type", arch)
    return flat


def _first(config: Mapping[str, Any], keys: tuple[str, ...]) -> int | None:
    for key in keys:
        value = config.get(key)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
