"""Configs of transformers made small: one table of sizes for the names that families use for them."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from zoo.entry import Entry, Specimen
from zoo.specimens import of_pretrained

SIZES: Mapping[str, int] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim", "embed_dim", "encoder_hidden_size",
                     "decoder_hidden_size", "lru_width", "embedding_dim", "fpn_hidden_size",
                     "mask_feature_size"), 32),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "encoder_ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner",
                     "hidden_dim", "ffn_hidden_size", "feed_forward_size", "encoder_intermediate_size",
                     "decoder_intermediate_size", "dim_feedforward", "intermediate_size_mlp", "dff",
                     "dim_ff"), 48),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 24),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers", "decoder_layers",
                     "num_encoder_layers", "num_decoder_layers", "encoder_num_hidden_layers",
                     "decoder_num_hidden_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "encoder_attention_heads",
                     "decoder_attention_heads", "encoder_num_attention_heads",
                     "decoder_num_attention_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_head_kv", "num_kv_heads"), 2),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "vocab_size"), 64),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "projection_dim", "embedding_size"), 16),
    **dict.fromkeys(("head_dim", "qk_nope_head_dim", "v_head_dim", "patch_size"), 8),
    **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id"), 0),
    **dict.fromkeys(("num_experts", "num_local_experts"), 3),
    "image_size": 32, "n_routed_experts": 4, "num_experts_per_tok": 2, "qk_rope_head_dim": 4, "type_vocab_size": 2,
    "first_k_dense_replace": 1, "n_group": 1, "topk_group": 1,
}  # fmt: skip

#: Where a family's model class is looked up, the first that has it.
_HEADS = ("CAUSAL_LM", "SEQ_TO_SEQ_CAUSAL_LM", "MASKED_LM", "IMAGE_TEXT_TO_TEXT", "SPEECH_SEQ_2_SEQ",
          "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC", "TEXT_TO_WAVEFORM", "VIDEO_CLASSIFICATION",
          "OBJECT_DETECTION")  # fmt: skip


def family(kind: str, model_type: str, blocks: int | None = None, **options: Any) -> Entry:
    """The line of a family of transformers: its `model_type`, how many blocks its tiny model has.

    Options: `set` are values of the config (with dots for inner configs), `head` the name of the model class, `name`
    that of the entry, and what `Entry` takes besides.
    """
    config, head = options.pop("set", {}), options.pop("head", None)

    def build(folder: Path) -> Specimen:
        return _born(model_type, config, head, folder)

    return Entry(options.pop("name", model_type), kind, build, "transformers", blocks, **options)


def _born(model_type: str, values: Mapping[str, Any], head: str | None, folder: Path) -> Specimen:
    import transformers

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # optional kernels and token ids, which differ by version
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
        config = tiny_config(model_type, values)
        torch.manual_seed(0)
        model = getattr(transformers, head or _head_of(model_type))(config).float()
        return of_pretrained(model, folder, lambda: _call(model))


def tiny_config(model_type: str, values: Mapping[str, Any]) -> Any:
    """The family's own config with small sizes, and then `values`."""
    from transformers import CONFIG_MAPPING

    config = _shrink(CONFIG_MAPPING[model_type]())
    for path, value in values.items():
        *inner, name = path.split("__")
        target = config
        for step in inner:
            target = getattr(target, step)
        setattr(target, name, value)
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"
    return config


def _shrink(config: Any) -> Any:
    from transformers import PreTrainedConfig

    layers = _value(config, "num_hidden_layers")
    for name, value in SIZES.items():
        now = _value(config, name)
        if isinstance(now, int) and not isinstance(now, bool):
            # Some names are another's, and cannot be set.
            with contextlib.suppress(AttributeError, NotImplementedError):
                setattr(config, name, value)
    for name, value in list(vars(config).items()):
        if isinstance(value, PreTrainedConfig):
            _shrink(value)
        elif isinstance(value, list) and len(value) == layers:  # something for each layer
            setattr(config, name, value[: SIZES["num_hidden_layers"]])
    return config


def _value(config: Any, name: str) -> object:
    try:
        return getattr(config, name, None)
    except Exception:  # values that differ by layer refuse to be asked for
        return None


def _head_of(model_type: str) -> str:
    from transformers.models.auto import modeling_auto

    for head in _HEADS:
        found = getattr(modeling_auto, f"MODEL_FOR_{head}_MAPPING_NAMES").get(model_type)
        if found:
            return found if isinstance(found, str) else found[0]
    found = modeling_auto.MODEL_MAPPING_NAMES[model_type]
    return found if isinstance(found, str) else found[0]


def _call(model: Any) -> None:
    """One pass over text, where that is all the model needs; products with bare parameters are seen in it."""
    tokens = torch.arange(48).reshape(1, -1) % 60 + 1
    try:
        more = {"decoder_input_ids": tokens} if model.config.is_encoder_decoder else {"use_cache": False}
        model(input_ids=tokens, **more)
    except Exception:  # a model that needs images or sound is not called; its layers are fed
        return
