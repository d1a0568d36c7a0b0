"""Structured pruning: heads, neurons, experts and whole blocks are taken out, and the model gets smaller."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.checkpoints.formats.memory import MemoryCheckpoint
from tailwise.checkpoints.writer import OutputLayout, Shard
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.taking import Drop
from tailwise.compression.shrinking.config_depth import depth_fields, inside
from tailwise.compression.shrinking.coupled import on_meta, why_not
from tailwise.compression.shrinking.experts_out import ExpertCuts, expert_cuts
from tailwise.compression.shrinking.structured_groups import (
    KIND_WORDS,
    ChannelGroup,
    groups_of,
    left_over,
    sizes_of_layer,
)
from tailwise.compression.shrinking.structured_scores import kept_units, magnitudes
from tailwise.compression.shrinking.structured_widths import removed_counts
from tailwise.core.errors import UsageError
from tailwise.models.walking.hosts import Host, Streamed, _empty
from tailwise.models.walking.shapes import Heads, Shapes, Sizes, reshape
from tailwise.models.walking.stored_names import lacking, sources_of
from tailwise.models.walking.towers import text_config_of
from tailwise.models.walking.walk import blocks_of

#: Names of the inner size in configs, where a family has one name only of its own.
_WIDTHS = ("intermediate_size", "ffn_dim", "n_inner")
_HEADS = ("num_attention_heads", "num_key_value_heads", "head_dim")


@dataclass(frozen=True)
class Origin:
    """The model that is cut: without weights, and where its tensors are."""

    model: nn.Module
    config: Any  # of transformers
    checkpoint: Checkpoint
    layout: OutputLayout
    sources: Mapping[str, str]  # parameter or buffer → stored tensor
    places: Mapping[str, str]  # tensor of the plan → parameter

    def matrix(self, layer: str) -> torch.Tensor:
        """The weight of a linear layer, (out × in)."""
        weights = self.checkpoint.read(self.sources[f"{layer}.weight"])
        return weights.T if type(self.model.get_submodule(layer)).__name__ == "Conv1D" else weights

    def stored(self, layer: str, what: str) -> str | None:
        """The stored tensor of a layer's weight or bias."""
        return self.sources.get(f"{layer}.{what}")

    def written(self, tensor: str) -> str:
        """A tensor of the plan as it is written: under its own name where the stored one is another."""
        return self.sources.get(self.places.get(tensor, ""), tensor)


def origin_of(host: Host, checkpoint: Checkpoint, layout: OutputLayout) -> Origin:
    """What can be cut of `host`. A model whose stored names are not its own is written under its own names."""
    config: Any = host.model.config
    if isinstance(host.home, Streamed):
        return Origin(host.model, config, checkpoint, layout, host.home.sources, host.places)
    dtypes = {host.places[name]: spec.dtype for name, spec in checkpoint.tensors.items() if name in host.places}
    kind = next(iter(dtypes.values()), "F32")
    memory = MemoryCheckpoint.of_module(host.model.to(torch_dtype(kind, where="the model")))
    specs = tuple(spec for name, spec in memory.tensors.items() if name not in memory.shared)
    own = OutputLayout(layout.folder, (Shard("model.safetensors", specs, {"format": "pt"}),))
    return Origin(on_meta(host.model), config, memory, own, {name: name for name in memory.tensors}, host.places)


@dataclass(frozen=True)
class Widths:
    """How whole numbers are chosen."""

    equal: bool = False  # the same in every block
    multiple: int = 8  # of neurons that stay


@dataclass(frozen=True)
class Surgery:
    """What is to be cut where, before it is known which units go."""

    origin: Origin
    plan: Plan
    groups: tuple[ChannelGroup, ...]
    counts: tuple[int, ...]  # units that go, of each group
    dropped: tuple[str, ...]  # modules of the blocks that go
    changed: Mapping[str, Any] = field(default_factory=dict)  # fields of the config that blocks and experts change
    experts: ExpertCuts = field(default_factory=ExpertCuts)
    kept: dict[str, torch.Tensor] = field(default_factory=dict)  # group → units that stay


def planned_surgery(plan: Plan, origin: Origin, widths: Widths) -> Surgery:
    """`UsageError` where the architecture or the amounts do not allow it: before any weight is read."""
    groups = groups_of(plan, origin.model, origin.places, origin.checkpoint.config)
    counts = removed_counts(groups, equal=widths.equal, multiple=widths.multiple)
    dropped = _dropped(plan, origin)
    experts = expert_cuts(plan, origin, dropped)
    changed = _merged(origin.config, depth_fields(origin.model, dropped), experts.fields)
    surgery = Surgery(origin, plan, tuple(groups), tuple(counts), dropped, changed, experts)
    if any(counts):
        _check_computes(surgery)
    return surgery


def _merged(config: Any, depth: Mapping[str, Any], experts: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of config.json: those of fewer blocks, which may be a part of it as a whole, with those of experts."""
    own = inside(config, text_config_of(config), experts) if experts else {}
    return dict(depth) | {
        name: {**depth[name], **experts} if isinstance(value, dict) and name in depth else value
        for name, value in own.items()
    }


def _check_computes(surgery: Surgery) -> None:
    """`UsageError` where the model no longer computes: its code takes a size from elsewhere than its layers."""
    why = _fails(surgery)
    if why is None:
        return
    kinds = {group.kind for group, count in zip(surgery.groups, surgery.counts, strict=True) if count}
    can = [kind for kind in sorted(kinds) if len(kinds) > 1 and _fails(_only(surgery, kind)) is None]
    cannot = [KIND_WORDS[kind] for kind in sorted(kinds - set(can))]
    roles = sorted({item.role for item in surgery.plan if item.role.startswith(tuple(f"{kind}_" for kind in can))})
    fix = f"plan with --roles {','.join(roles)}" if can else "use an operator that leaves the shapes"
    kind = type(surgery.origin.model).__name__
    raise UsageError(
        f"{' and '.join(cannot)} of a {kind} cannot be cut: its code takes their number from elsewhere than its layers",
        fix=fix,
    )


def _only(surgery: Surgery, kind: str) -> Surgery:
    counts = (count if group.kind == kind else 0 for group, count in zip(surgery.groups, surgery.counts, strict=True))
    return replace(surgery, counts=tuple(counts))


def _fails(surgery: Surgery) -> str | None:
    """Why the smaller model does not compute; where the config can say its sizes, as the config makes it."""
    shapes = shapes_of(surgery)
    fields = _said_by_config(surgery, shapes, {})
    if fields is None:
        model = on_meta(surgery.origin.model)
        reshape(model, shapes)
        return why_not(model)
    config: Any = surgery.origin.config
    return why_not(
        _empty(type(surgery.origin.model), type(config).from_dict({**config.to_dict(), **fields}), torch.float32)
    )


def _dropped(plan: Plan, origin: Origin) -> tuple[str, ...]:
    tensors = [decision.tensor for decision in plan if isinstance(decision.treatment, Drop)]
    if not tensors:
        return ()
    blocks = blocks_of(origin.model)
    names = {origin.places.get(tensor, ""): tensor for tensor in tensors}
    blocks_gone = {block.name for block in blocks for place in names if place.startswith(f"{block.name}.")}
    lost = [
        tensor for place, tensor in names.items() if not place.startswith(tuple(f"{name}." for name in blocks_gone))
    ]
    if lost:
        raise UsageError("is in none of the blocks that can go", where=lost[0], fix="take the entry out of the plan")
    if len(blocks_gone) == len(blocks):
        raise UsageError("no block would be left", fix="keep at least one")
    return tuple(block.name for block in blocks if block.name in blocks_gone)


def choose_by_magnitude(surgery: Surgery) -> None:
    """Say which units stay, from the weights alone."""
    for group, removed in zip(surgery.groups, surgery.counts, strict=True):
        scores = magnitudes(group, surgery.origin.matrix)
        surgery.kept[group.name] = kept_units(scores, removed)


def shapes_of(surgery: Surgery) -> Shapes:
    """The sizes of all layers that are cut, under the names that they have before blocks go."""
    layers: dict[str, Sizes] = {}
    heads: dict[str, Heads] = {}
    for group, removed in zip(surgery.groups, surgery.counts, strict=True):
        if not removed:
            continue
        left = group.units - removed
        for cut in group.cuts:
            inputs, outputs = sizes_of_layer(surgery.origin.model, cut.layer)
            less = removed * cut.index.shape[1]
            layers[cut.layer] = Sizes(inputs, outputs - less) if cut.output else Sizes(inputs - less, outputs)
        if group.attention is not None and group.heads is not None:
            heads[group.attention] = left_over(group.heads, left)
    return Shapes(layers, heads)


def _said_by_config(surgery: Surgery, shapes: Shapes, depth: Mapping[str, Any]) -> dict[str, Any] | None:
    """The fields of config.json that say the same as `shapes`; None where no config does."""
    if not shapes.layers:
        return dict(depth)
    config = surgery.origin.config
    fields = {**depth, **_equal_fields(surgery)}
    try:
        changed = type(config).from_dict({**config.to_dict(), **fields})
        there = _empty(type(surgery.origin.model), changed, torch.float32)
        here = _empty(type(surgery.origin.model), type(config).from_dict({**config.to_dict(), **depth}), torch.float32)
    except Exception:  # a config that the architecture refuses says nothing
        return None
    reshape(here, shapes)
    same = {name: tuple(value.shape) for name, value in there.state_dict().items()} == {
        name: tuple(value.shape) for name, value in here.state_dict().items()
    }
    return fields if same else None


def _equal_fields(surgery: Surgery) -> dict[str, Any]:
    """What the first group of each kind has; whether the others have the same is seen in the shapes."""
    config = surgery.origin.config
    fields: dict[str, Any] = {}
    for group, removed in zip(surgery.groups, surgery.counts, strict=True):
        if group.kind == "mlp":
            fields |= {name: group.units - removed for name in _WIDTHS if hasattr(config, name)}
        elif group.heads is not None:
            left = left_over(group.heads, group.units - removed)
            values = dict(zip(_HEADS, (left.queries, left.groups, left.size), strict=True))
            fields |= {_key(config, name): value for name, value in values.items()
                       if name != "num_key_value_heads" or hasattr(config, _key(config, name))}  # fmt: skip
    return fields


def fits(model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str] | None = None) -> bool:
    """Whether a checkpoint holds every tensor of a model, in its shape; `names` as of `separated`."""
    sources = sources_of(model, checkpoint, names)
    return sources is not None and not lacking(model, sources)


def _key(config: Any, name: str) -> str:
    """What the family calls a field in its config.json."""
    return str((getattr(config, "attribute_map", None) or {}).get(name, name))
