"""Which layers share neurons, by torch-pruning's dependency graph; and whether a model still computes.

Both run on the meta device: no weights, no arithmetic.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from copy import deepcopy
from importlib import import_module
from typing import Any

import torch
from torch import nn

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get
from tailwise.models.walking.experts import separate_experts
from tailwise.models.walking.statistics import weight_of
from tailwise.models.walking.towers import text_config_of

_TOKENS = 4


def inputs_for(model: nn.Module) -> dict[str, Any]:
    """What the model is called with on the meta device: a few tokens with a mask of its own, or one image."""
    config: Any = getattr(model, "config", None)
    if getattr(model, "main_input_name", "input_ids") == "pixel_values":
        size = getattr(config, "image_size", 224)
        high, wide = size if isinstance(size, list | tuple) else (size, size)
        channels = getattr(config, "num_channels", 3)
        return {"pixel_values": torch.zeros(1, channels, high, wide, device="meta")}
    ids = torch.zeros(1, _TOKENS, dtype=torch.long, device="meta")
    # Masks and positions that are given need not be worked out from values, which are not there.
    mask: Any = torch.zeros(1, 1, _TOKENS, _TOKENS, device="meta")
    kinds = set(getattr(text_config_of(config), "layer_types", None) or ())
    if kinds & {"sliding_attention"}:
        mask = dict.fromkeys(("full_attention", "sliding_attention"), mask)
    return {"input_ids": ids, "position_ids": ids, "attention_mask": mask, "use_cache": False}


def on_meta(model: nn.Module) -> nn.Module:
    """A copy without values; the model itself is left as it is."""
    memo: dict[int, Any] = {id(value): value.to("meta") for value in model.buffers()}
    for value in model.parameters():
        memo[id(value)] = nn.Parameter(value.detach().to("meta"), requires_grad=value.is_floating_point())
    twin: Any = deepcopy(model, memo)
    if hasattr(twin, "set_attn_implementation"):
        twin.set_attn_implementation("eager")  # the only one whose steps are seen one by one
    copied: nn.Module = twin
    return copied


def called(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """What comes out first: logits, or the last states. Families differ in what they take beside the tokens."""
    first: Exception | None = None
    for given in _ways(inputs):
        try:
            output = model(**given)
        except Exception as error:  # every architecture fails in its own way
            first = first or error
            continue
        logits = getattr(output, "logits", None)
        return logits if isinstance(logits, torch.Tensor) else output[0]
    assert first is not None  # noqa: S101 - there is one way at least
    raise first


def _ways(inputs: Mapping[str, Any]) -> Iterable[Mapping[str, Any]]:
    """The inputs; without positions and caches; with a mask of two axes, as BLOOM and MPT take it; the tokens alone."""
    yield inputs
    if "input_ids" in inputs:
        ids = inputs["input_ids"]
        yield {name: inputs[name] for name in ("input_ids", "attention_mask")}
        yield {"input_ids": ids, "attention_mask": torch.ones_like(ids), "use_cache": False}
        yield {"input_ids": ids, "use_cache": False}


def coupled_layers(model: nn.Module, roots: Iterable[str]) -> dict[str, frozenset[str]]:
    """Root (a layer that writes neurons) → every linear layer that writes or reads them, itself among them."""
    pruning = _torch_pruning()
    copy = on_meta(model)
    _as_linear(copy)
    names = {id(module): name for name, module in copy.named_modules()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph = pruning.DependencyGraph().build_dependency(
                copy,
                example_inputs=inputs_for(copy),
                forward_fn=called,
                output_transform=lambda output: output,
            )
            groups = {root: graph.get_pruning_group(copy.get_submodule(root), pruning.prune_linear_out_channels, [0])
                      for root in roots}  # fmt: skip
    except Exception as error:  # every architecture fails in its own way
        raise _not_traced(model, error) from error
    return {root: frozenset(_layers(group, names)) for root, group in groups.items()}


def _layers(group: Any, names: Mapping[int, str]) -> Iterable[str]:
    for dependency, _ in group:
        module = dependency.target.module
        if id(module) in names:
            yield names[id(module)]


def why_not(model: nn.Module) -> str | None:
    """Why a model with other sizes no longer computes, where its code takes a size from elsewhere; None if it does."""
    copy = on_meta(model)
    separate_experts(copy)  # who is sent where cannot be told without values
    try:
        with torch.no_grad():
            called(copy, inputs_for(copy))
    except Exception as error:  # as above
        lines = str(error).strip().splitlines()
        return lines[0] if lines else type(error).__name__
    return None


def _not_traced(model: nn.Module, error: Exception) -> UsageError:
    lines = str(error).strip().splitlines()
    return UsageError(
        f"torch-pruning could not follow the layers of a {type(model).__name__} "
        f"({lines[0] if lines else type(error).__name__})",
        fix="its neurons cannot be cut: plan with --roles of its attention, or use another operator",
    )


def _torch_pruning() -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            library = import_module("torch_pruning")
    except ImportError as error:
        fix = how_to_get("structured")
        raise UsageError("cutting neurons takes `torch-pruning`", fix=fix) from error
    return library


def _as_linear(model: nn.Module) -> None:
    """Linear layers that the graph does not know: GPT-2's `Conv1D`, stored in × out, and Falcon's."""
    for name, module in list(model.named_modules()):
        if type(module).__name__ in ("Conv1D", "FalconLinear"):
            parent, _, last = name.rpartition(".")
            inputs, outputs = weight_of(module).shape
            if type(module).__name__ != "Conv1D":
                inputs, outputs = outputs, inputs
            setattr(model.get_submodule(parent), last, nn.Linear(inputs, outputs, device="meta"))
