"""What transformers makes of stored names: a file of Mixtral says `block_sparse_moe.experts.3.w1.weight`."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

from torch import nn

from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.experts import HALVES

_FACTOR = re.compile(r"\.(?:first|second)\.(weight|bias)$")
_EXPERT = re.compile(r"\.experts\.(\d+)\.")


def own_names(model: nn.Module, stored: Collection[str]) -> dict[str, str]:
    """Stored name → the name in the model, by transformers' own table of renamings.

    An expert that is stored by itself has the name of its layer among separated experts (`separate_experts`). Names
    that stand for a part of a tensor, or for something computed, are left out.
    """
    conversions = _conversions(model)
    if not conversions:
        return {}
    whole = {name for name, _ in model.named_parameters()} | {name for name, _ in model.named_buffers()}
    prefix = getattr(model, "base_model_prefix", "")
    names: dict[str, str] = {}
    for name in stored:
        plain, factor = _without_factor(name)
        new = _renamed(plain, conversions)
        if new is None:
            continue
        target, part = new
        placed = next((place for place in _with_prefix(target, prefix) if place in whole), None)
        if placed is None:
            continue
        own = placed if part is None else f"{placed.rpartition('.')[0]}.{part}.weight"
        names[name] = f"{own.rpartition('.')[0]}{factor}" if factor else own
    return names


def _without_factor(name: str) -> tuple[str, str]:
    """The name that a layer had before it was stored as two, and what the factor's ends with."""
    match = _FACTOR.search(name)
    return (name, "") if match is None else (f"{name[: match.start()]}.{match[1]}", match[0])


def _with_prefix(name: str, prefix: str) -> tuple[str, ...]:
    return (name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")) if prefix else (name,)


def _conversions(model: nn.Module) -> list[Any]:
    """The table; empty where this transformers has none."""
    try:
        from transformers.conversion_mapping import get_model_conversion_mapping
    except ImportError:
        return []
    with quiet():
        return list(get_model_conversion_mapping(model))  # type: ignore[arg-type]


def _renamed(name: str, conversions: list[Any]) -> tuple[str, str | None] | None:
    """(name of the parameter, the expert's layer in it or None); None where the tensor is not stored as it is used."""
    new = name
    converters = [item for item in conversions if getattr(item, "operations", None)]
    for item in conversions:
        if item not in converters:
            new = item.rename_source_key(new)[0]
    for item in converters:
        target, pattern = item.rename_source_key(new)
        if pattern is None:
            continue
        part = _part(new, target, item, pattern)
        return None if part is None else (target, part)
    return new, None


def _part(name: str, target: str, converter: Any, pattern: str) -> str | None:
    """The layer of an expert that a list of tensors is merged from: `3.gate_proj`; None for other conversions."""
    steps = [type(step).__name__ for step in converter.operations]
    expert = _EXPERT.search(name)
    if steps[:1] != ["MergeModulelist"] or set(steps[1:]) - {"Concatenate"} or expert is None:
        return None
    sources = list(converter.source_patterns)
    if len(sources) == 2 and len(steps) == 2:
        return f"{expert[1]}.{HALVES[sources.index(pattern)]}"
    last = target.rpartition(".")[2]
    return f"{expert[1]}.{last}" if len(sources) == 1 and last in (HALVES[1], "down_proj") else None
