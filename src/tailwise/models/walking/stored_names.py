"""Which stored tensor each parameter of a live model is."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.models.evaluation.gguf_files import gguf_places
from tailwise.models.walking.experts import separate_experts, stacks_in
from tailwise.models.walking.names import own_names


def sources_of(
    model: nn.Module, checkpoint: Checkpoint, names: Mapping[str, str] | None = None
) -> dict[str, str] | None:
    """Parameter or buffer → stored tensor of its name and shape; None where one that is needed has none.

    `names` are stored names that transformers gives others in the model (`separated`).

    What is tied to one that was found needs none, and neither does a head; but one that is stored under a name that
    the family had before (GPT-NeoX's `embed_out`) is found by its shape.
    """
    prefix = getattr(model, "base_model_prefix", "")
    head = getattr(model, "get_output_embeddings", lambda: None)()
    dispensable = set() if head is None else {id(value) for value in head.parameters()}
    state = model.state_dict(keep_vars=True)
    sources: dict[str, str] = {}
    renamed = {own: stored for stored, own in (names or {}).items()}
    for name, value in state.items():
        for stored in (renamed.get(name, name), name, f"{prefix}.{name}", name.removeprefix(f"{prefix}.")):
            spec = checkpoint.tensors.get(stored)
            if spec is not None and spec.shape == tuple(value.shape):
                sources[name] = stored
                break
    for name in lacking(model, sources):
        if id(state[name]) not in dispensable:
            return None
        free = [spec.name for spec in checkpoint.tensors.values() if spec.shape == tuple(state[name].shape)]
        free = sorted(set(free) - set(sources.values()))
        if len(free) == 1:
            sources[name] = free[0]
    return sources


def lacking(model: nn.Module, sources: Collection[str]) -> list[str]:
    """Parameters and buffers that are not among `sources`, nor tied to one of them."""
    state = model.state_dict(keep_vars=True)
    held = {id(state[name]) for name in sources}
    return [name for name, value in state.items() if id(value) not in held]


def tied_to(model: nn.Module, sources: Mapping[str, str]) -> dict[str, str]:
    """`sources`, and what is tied to a parameter that they have under its other names."""
    state = model.state_dict(keep_vars=True)
    stored = {id(state[name]): source for name, source in sources.items()}
    return {name: stored[id(value)] for name, value in state.items() if id(value) in stored} | dict(sources)


def places_in(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Stored tensor → parameter of a model that was loaded from `checkpoint`; its experts become layers, in place."""
    if checkpoint.format == "gguf":
        return gguf_places(model, checkpoint)
    names = separated(model, checkpoint)
    sources = sources_of(model, checkpoint, names)
    if sources is None:
        return by_content(model, checkpoint)
    return {stored: parameter for parameter, stored in sources.items()}


def by_content(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Stored tensor → parameter: by name where the values agree, else by the values alone."""
    parameters = {name: value for name, value in model.named_parameters() if value.ndim > 1}
    sources: dict[str, str] = {}
    for stored, spec in checkpoint.tensors.items():
        if len(spec.shape) < 2 or spec.dtype not in ("F32", "F16", "BF16", "F64"):
            continue
        alike = [name for name, value in parameters.items() if tuple(value.shape) == spec.shape]
        alike.sort(key=lambda name: name != stored)
        values = checkpoint.read(stored) if alike else None
        place = next((name for name in alike if values is not None and _equal(parameters[name], values)), None)
        if place is not None:
            sources[stored] = place
            del parameters[place]
    return sources


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool(torch.equal(one.detach(), other.to(one.dtype)))


def separated(model: nn.Module, checkpoint: Checkpoint) -> dict[str, str]:
    """Make layers of the experts of `model`, as `checkpoint` stores them; stored name → name in the model."""
    stacks = [f"{name}." for name, _ in stacks_in(model)]
    names = own_names(model, checkpoint.tensors)
    parameters = {name for name, _ in model.named_parameters() if name.startswith(tuple(stacks))} if stacks else set()
    # Names that need no change are not in the table of old transformers, and neither are those of stacks.
    as_stored = parameters & {*names.values(), *checkpoint.tensors}
    separate_experts(model, as_stored)
    names |= {name: name for name in as_stored - set(names.values())}
    return {
        stored: f"{name}.weight" if name in as_stored and _in(model, f"{name}.weight") else name
        for stored, name in names.items()
    }


def _in(model: nn.Module, parameter: str) -> bool:
    try:
        model.get_parameter(parameter)
    except AttributeError:
        return False
    return True
