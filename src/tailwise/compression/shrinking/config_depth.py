"""What a config says of its blocks, and what it must say after some of them went.

Fields that count blocks, list something for each, or name some by number are known here by name. Whether they are all
is not trusted: the model that the changed config describes is built without weights, and each block that stays is held
against the one that takes its place. Where they differ, the blocks cannot go, and this is told before any work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from tailwise.core.errors import UsageError
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.hosts import _empty
from tailwise.models.walking.towers import is_composite, text_config_of
from tailwise.models.walking.walk import blocks_of

#: Fields with one item for each block.
_LISTS = frozenset({
    "layer_types", "mlp_layer_types", "layers_block_type", "layer_block_types", "no_rope_layers", "block_types",
    "attention_layers", "moe_layer_types", "mlp_types", "layer_pattern", "num_attention_heads_per_layer",
    "num_key_value_heads_per_layer", "sparse_layers_mask",
})  # fmt: skip
#: Fields that name some blocks by number.
_NUMBERS = frozenset({
    "mlp_only_layers", "moe_layers", "attn_layer_indices", "full_attn_idxs", "hybrid_layer_ids", "global_attn_indexes",
    "cross_attention_layers", "dense_layers", "slstm_at",
})  # fmt: skip
#: Fields that count the first blocks, up to a number.
_FIRST = frozenset({
    "first_k_dense_replace", "max_window_layers", "num_dense_layers", "moe_layer_start_index",
})  # fmt: skip
#: Fields that count the last blocks.
_LAST = frozenset({"num_kv_shared_layers"})
#: Fields by which a block computes otherwise at another place.
_BY_PLACE = ("scale_attn_by_inverse_layer_idx",)


def depth_fields(model: nn.Module, gone: Sequence[str]) -> dict[str, Any]:
    """Fields of config.json that change where the blocks `gone` (names of modules) go.

    `model` may be without weights. `UsageError` where no config says what would be left.
    """
    if not gone:
        return {}
    blocks = blocks_of(model)
    stays = [block.name not in gone for block in blocks]
    config: Any = model.config
    text = text_config_of(config)
    for name in _BY_PLACE:
        if getattr(text, name, False) and stays != sorted(stays, reverse=True):
            raise _refused(model, f"{name} scales each block by its place, and blocks would move")
    own = _fields(text, stays, model)
    changes = inside(config, text, own)
    _check(model, _built(model, changes), [block for block, stay in zip(blocks, stays, strict=True) if stay])
    return changes


def _fields(text: Any, stays: Sequence[bool], model: nn.Module) -> dict[str, Any]:
    """Fields of the config of the text tower."""
    key = str((getattr(text, "attribute_map", None) or {}).get("num_hidden_layers", "num_hidden_layers"))
    if getattr(text, key, None) != len(stays):
        raise _refused(model, f"its config does not count its {len(stays)} blocks in {key}")
    places = [place for place, stay in enumerate(stays) if stay]
    fields: dict[str, Any] = {key: len(places)}
    for name, value in text.to_dict().items():
        listed = isinstance(value, list | tuple)
        if name in _LISTS and listed and len(value) == len(stays):
            fields[name] = [value[place] for place in places]
        elif name in _NUMBERS and listed:
            fields[name] = [places.index(place) for place in value if place in places]
        elif name in _FIRST and _is_count(value):
            fields[name] = sum(place < value for place in places) + max(0, value - len(stays))
        elif name in _LAST and _is_count(value):
            fields[name] = sum(place >= len(stays) - value for place in places)
    if (kinds := getattr(text, "attention_layers", None)) and hasattr(text, "attention_types"):  # GPT-Neo
        fields["attention_types"] = [[[kinds[place] for place in places], 1]]
    return fields


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def inside(config: Any, text: Any, own: Mapping[str, Any]) -> dict[str, Any]:
    """The changes where they stand in config.json: within the part of a composite config that they are about."""
    if not is_composite(config):
        return dict(own)
    for name, value in vars(config).items():
        if value is text:
            return {name: {**text.to_dict(), **own}}
    raise UsageError("its config does not hold that of its text tower", fix="its blocks cannot go")


def _built(model: nn.Module, changes: Mapping[str, Any]) -> nn.Module:
    """The model that the changed config describes, without weights."""
    config: Any = model.config
    try:
        changed = type(config).from_dict({**config.to_dict(), **changes})
        return _empty(type(model), changed, torch.float32)
    except Exception as error:  # every config refuses in its own way
        lines = str(error).strip().splitlines()
        raise _refused(model, lines[0] if lines else type(error).__name__) from error


def _check(model: nn.Module, left: nn.Module, remaining: Sequence[Block]) -> None:
    """`UsageError` where a block that stays is not what the changed config makes of its place."""
    there = blocks_of(left)
    if len(there) != len(remaining):
        raise _refused(model, f"the config would make {len(there)} blocks, and {len(remaining)} stay")
    for old, new in zip(remaining, there, strict=True):
        if what := _differs(old, new):
            raise _refused(model, f"block {old.index} would become block {new.index}, where the config puts {what}")


def _differs(old: Block, new: Block) -> str:
    """What the block at the new place has that the one that stays has not; empty where they are alike."""
    theirs, mine = (dict(block.module.named_modules()) for block in (new, old))
    more = [name for name in theirs if name not in mine and not _beside_experts(name)]
    if more:
        return f"one with {more[0]}"
    for name, module in mine.items():
        if _beside_experts(name):
            continue
        other = theirs.get(name)
        if other is None:
            return f"one without {name}"
        if type(other) is not type(module):
            return f"a {type(other).__name__} for a {type(module).__name__}"
        for key, value in _facts(module).items():
            now = _facts(other).get(key)
            if value != now and not (value == old.index and now == new.index):
                return f"{name or 'another'}{'.' if name else ' '}{key} of {now} for {value}"
    return ""


def _beside_experts(name: str) -> bool:
    return ".experts." in f".{name}."  # which may be separated in one of the two


def _facts(module: nn.Module) -> dict[str, Any]:
    """Numbers, words and shapes by which a module computes."""
    counts: dict[str, Any] = {}
    for key, value in vars(module).items():
        if isinstance(value, int | float | str | bool) and not key.startswith("_") and key != "training":
            counts[key] = value
    weights = {key: tuple(value.shape) for key, value in module._parameters.items() if value is not None}
    if hasattr(module, "_tailwise_kind") or any(len(shape) == 3 for shape in weights.values()):
        return counts  # experts, which may be separated in one of the two
    return counts | weights


def _refused(model: nn.Module, why: str) -> UsageError:
    return UsageError(
        f"whole blocks of this {type(model).__name__} cannot go: {why}",
        fix="take other blocks, or an operator that leaves the shapes",
    )
