"""What goes together: the neurons of an MLP and the heads of an attention, through all the tensors that hold them.

The layers that share neurons are found by torch-pruning's dependency graph of the model without its weights. Heads
are a matter of how an attention reshapes its projections: their layout is that of the model's config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Dims, dims_for
from tailwise.checkpoints.fused import qkv_ranges
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.coupled import coupled_layers
from tailwise.core.errors import UsageError
from tailwise.models.walking.shapes import Heads
from tailwise.models.walking.statistics import PLAIN

Kind = Literal["attn", "mlp"]
_KIND = re.compile(r"(attn|mlp)_(\w+)")
KIND_WORDS = {"attn": "attention heads", "mlp": "MLP neurons"}


@dataclass(frozen=True)
class Cut:
    """A layer, one axis of it, and the entries of that axis that belong to each unit."""

    layer: str  # module
    output: bool  # the axis of outputs (and the bias) or that of inputs
    index: torch.Tensor  # (units, each) int64


@dataclass(frozen=True)
class ChannelGroup:
    """Heads or neurons of one block, which go one by one through all layers of `cuts`."""

    kind: Kind
    block: int | None
    asked: float  # fraction of the units that is to go
    n_params: int  # of all tensors in it
    units: int
    cuts: tuple[Cut, ...]
    reader: Cut  # the layer whose inputs the units are: down, or the output projection
    attention: str | None = None  # module that counts the heads
    heads: Heads | None = None

    @property
    def name(self) -> str:
        """For errors and the journal."""
        return f"{KIND_WORDS[self.kind]} of block {self.block}"


@dataclass(frozen=True)
class DecidedLayer:
    """A decision and the layer that it is about."""

    decision: Decision
    layer: str
    part: str  # q, k, v, o, qkv; gate, up, down, gate_up


def groups_of(plan: Plan, model: nn.Module, places: Mapping[str, str], config: Mapping[str, Any]) -> list[ChannelGroup]:
    """The groups that the entries of `plan` make; entries of whole blocks and experts, and of nothing, are left out.

    `model` may be without weights; `places` says which parameter each stored tensor is.
    """
    by_kind: dict[tuple[int | None, str], list[DecidedLayer]] = {}
    if all(decision.treatment.idle or decision.treatment.whole for decision in plan):
        return []
    for decision in plan:
        if decision.treatment.whole:
            continue
        match = _KIND.fullmatch(decision.role)
        if match is None:
            if not decision.treatment.idle:
                raise _not_known(decision)
            continue
        named = DecidedLayer(decision, layer_of_decision(model, places, decision), match[2])
        by_kind.setdefault((decision.block, match[1]), []).append(named)
    # A kind of which any block loses something is looked at in all: widths are equal, or not, over all of them.
    cut = {kind for (_, kind), members in by_kind.items() if any(item.decision.sparsity for item in members)}
    wanted = {key: members for key, members in by_kind.items() if key[1] in cut}
    coupled: Mapping[str, frozenset[str]] = {}
    if any(kind == "mlp" for _, kind in wanted):
        roots = [_first(members) for (_, kind), members in wanted.items() if kind == "mlp"]
        coupled = coupled_layers(model, roots)
    return [_group(key, members, model, config, coupled) for key, members in wanted.items()]


def _not_known(decision: Decision) -> UsageError:
    return UsageError(
        f"structured pruning does not take a {decision.role}",
        where=decision.tensor,
        fix="take the entry out of the plan; attention and plain MLPs can be cut",
    )


def layer_of_decision(model: nn.Module, places: Mapping[str, str], decision: Decision) -> str:
    """The linear layer that a decision is about; `UsageError` for anything else."""
    place = places.get(decision.tensor, "")
    layer = place.removesuffix(".weight")
    module = model.get_submodule(layer) if place.endswith(".weight") else None
    if module is None or type(module).__name__ not in PLAIN:
        kind = "none" if module is None else f"a {type(module).__name__}"
        raise UsageError(
            f"linear layers can be cut, and this is {kind}",
            where=decision.tensor,
            fix="take the entry out of the plan",
        )
    return layer


def _first(members: Iterable[DecidedLayer]) -> str:
    listed = list(members)
    return next((item.layer for item in listed if item.part in ("up", "gate_up")), listed[0].layer)


def _group(
    key: tuple[int | None, str],
    members: list[DecidedLayer],
    model: nn.Module,
    config: Mapping[str, Any],
    coupled: Mapping[str, frozenset[str]],
) -> ChannelGroup:
    block, kind = key
    amounts = {round(item.decision.sparsity or 0.0, 9) for item in members}
    if len(amounts) > 1:
        raise UsageError(
            f"its entries ask for {', '.join(f'{amount:g}' for amount in sorted(amounts))}, and units go through all",
            where=f"{KIND_WORDS[kind]} of block {block}",
            fix="give them one amount",
        )
    maker = _neurons if kind == "mlp" else _heads
    layers = {item.part: item.layer for item in members}
    if len(layers) != len(members):
        raise UsageError(
            "the block has more than one layer of a kind",
            where=f"{KIND_WORDS[kind]} of block {block}",
            fix="take its entries out of the plan",
        )
    if kind == "mlp":
        _check_coupled(members, coupled, block)
    shared: dict[str, Any] = {
        "block": block,
        "asked": amounts.pop(),
        "n_params": sum(item.decision.n_params for item in members),
    }
    return maker(layers, model, dims_for(members[0].decision.tensor, config), shared)


def _check_coupled(members: list[DecidedLayer], coupled: Mapping[str, frozenset[str]], block: int | None) -> None:
    mine, needed = {item.layer for item in members}, coupled[_first(members)]
    if mine == needed:
        return
    lacking, over = sorted(needed - mine), sorted(mine - needed)
    if lacking and over:
        raise UsageError(
            "torch-pruning's graph of the model does not show which layers share its neurons",
            where=f"{KIND_WORDS['mlp']} of block {block}",
            fix="they cannot be cut: plan with --roles of its attention, or use an operator that leaves the shapes",
        )
    troubles = [f"the plan lacks {', '.join(lacking)}"] if lacking else []
    troubles += [f"{', '.join(over)} shares no neurons with the others"] if over else []
    raise UsageError(
        "; ".join(troubles),
        where=f"{KIND_WORDS['mlp']} of block {block}",
        fix="neurons go through every layer that holds them: plan without --roles, or take the entries out",
    )


def sizes_of_layer(model: nn.Module, layer: str) -> tuple[int, int]:
    """(inputs, outputs) of a linear layer."""
    module: Any = model.get_submodule(layer)
    rows, cols = module.weight.shape
    return (rows, cols) if type(module).__name__ == "Conv1D" else (cols, rows)


def _neurons(
    layers: Mapping[str, str],
    model: nn.Module,
    dims: Dims,  # noqa: ARG001 - as heads are made
    shared: dict[str, Any],
) -> ChannelGroup:
    where = f"{KIND_WORDS['mlp']} of block {shared['block']}"
    if "down" not in layers or not {"up", "gate_up"} & set(layers):
        raise UsageError("an up and a down projection are needed", where=where, fix="plan without --roles")
    width = sizes_of_layer(model, layers["down"])[0]
    cuts = []
    for part, layer in layers.items():
        index = torch.arange(width)[:, None]
        if part == "gate_up":  # all gates, then all ups
            index = torch.arange(2 * width).view(2, width).T.contiguous()
        size = sizes_of_layer(model, layer)[0 if part == "down" else 1]
        if size != index.numel():
            raise UsageError(f"{layer} has {size} features where {index.numel()} were expected", where=where)
        cuts.append(Cut(layer, part != "down", index))
    reader = next(cut for cut in cuts if not cut.output)
    return ChannelGroup("mlp", units=width, cuts=tuple(cuts), reader=reader, **shared)


def _heads(layers: Mapping[str, str], model: nn.Module, dims: Dims, shared: dict[str, Any]) -> ChannelGroup:
    where = f"{KIND_WORDS['attn']} of block {shared['block']}"
    if set(layers) not in ({"q", "k", "v", "o"}, {"qkv", "o"}):
        raise UsageError(
            f"the plan has {', '.join(sorted(layers))} of its attention; heads go through q, k, v (or qkv) and o",
            where=where,
            fix="plan without --roles, or take its entries out of the plan",
        )
    heads = _counted(dims, where)
    indices = _head_indices(layers, model, dims, heads)
    sizes = {part: sizes_of_layer(model, layer)[0 if part == "o" else 1] for part, layer in layers.items()}
    if indices is None or any(int(index.max()) >= sizes[part] for part, index in indices.items()):
        raise UsageError(
            f"the config's {heads.queries} heads of {heads.size} do not explain its projections "
            f"({', '.join(f'{part} {size}' for part, size in sorted(sizes.items()))})",
            where=where,
            fix="this architecture's heads cannot be cut: take its attention out of the plan (--roles)",
        )
    cuts = tuple(Cut(layers[part], part != "o", index) for part, index in indices.items())
    reader = next(cut for cut in cuts if not cut.output)
    parent = layers.get("q", layers.get("qkv", "")).rpartition(".")[0]
    return ChannelGroup(
        "attn", units=len(reader.index), cuts=cuts, reader=reader, attention=parent, heads=heads, **shared
    )


def _counted(dims: Dims, where: str) -> Heads:
    if not (dims.heads and dims.kv_heads and dims.head_dim):
        raise UsageError(
            "its config does not say how many heads it has", where=where, fix="take its attention out of the plan"
        )
    if dims.heads % dims.kv_heads:
        raise UsageError(
            f"{dims.heads} query heads are not divided by {dims.kv_heads} key-value heads",
            where=where,
            fix="correct num_key_value_heads in config.json",
        )
    return Heads(dims.heads, dims.kv_heads, dims.head_dim)


def _head_indices(
    layers: Mapping[str, str], model: nn.Module, dims: Dims, heads: Heads
) -> dict[str, torch.Tensor] | None:
    """Part → (units, each). A unit is a key-value head with its queries; a query where all share one key-value head."""
    shared = heads.groups == 1 and heads.queries > 1
    units = heads.queries if shared else heads.groups
    queries, values = heads.queries * heads.size, heads.groups * heads.size
    sizes = {part: sizes_of_layer(model, layer)[0 if part == "o" else 1] for part, layer in layers.items()}
    indices = {"o": torch.arange(queries).view(units, -1)}
    if "qkv" in layers:
        inputs = sizes_of_layer(model, layers["qkv"])[0]
        ranges = qkv_ranges(layers["qkv"], sizes["qkv"], dims, square=sizes["qkv"] == 3 * inputs)
        if ranges is None or sizes["qkv"] != queries + 2 * values:
            return None
        parts = {
            part: torch.cat([torch.arange(start, stop) for start, stop in where]) for part, where in ranges.items()
        }
        taken = ("q",) if shared else ("q", "k", "v")
        indices["qkv"] = torch.cat([parts[part].view(units, -1) for part in taken], dim=1)
    else:
        if (sizes["q"], sizes["k"], sizes["v"]) != (queries, values, values):
            return None
        indices["q"] = torch.arange(queries).view(units, -1)
        if not shared:
            indices |= {part: torch.arange(values).view(units, -1) for part in ("k", "v")}
    return indices if sizes["o"] == queries else None


def left_over(heads: Heads, remaining: int) -> Heads:
    """The heads of which `kept` units stay."""
    if heads.groups == 1:
        return Heads(remaining, 1, heads.size)
    return Heads(remaining * (heads.queries // heads.groups), remaining, heads.size)
