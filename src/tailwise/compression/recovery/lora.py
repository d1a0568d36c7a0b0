"""Low-rank adapters of peft on the layers that were pruned."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.functional import linear

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get
from tailwise.models.evaluation.quiet import quiet
from tailwise.models.walking.statistics import LINEAR
from tailwise.models.walking.walk import blocks_of

_PREFIX = "base_model.model."  # of peft's names


def layers_for(model: nn.Module, masks: Collection[str]) -> list[str]:
    """The linear layers of the blocks whose weight holds zeros; all of them where none does."""
    layers = [
        name for block in blocks_of(model) for name, module in block.layers().items() if type(module).__name__ in LINEAR
    ]
    pruned = [name for name in layers if f"{name}.weight" in masks]
    if not (pruned or layers):
        raise UsageError("it has no linear layers for an adapter", fix="use --method masked")
    return pruned or layers


def with_adapter(model: nn.Module, layers: Collection[str], rank: int, seed: int, base: str) -> Any:
    """The model of peft with an adapter of `rank` on `layers`; it changes nothing until it is trained.

    The adapter is B·A scaled by 2, as alpha is twice the rank (Hu et al. 2021, arXiv:2106.09685). `base` is written
    into it as the model that it belongs to.
    """
    try:
        with quiet():
            import peft
    except ImportError as error:
        raise UsageError("LoRA takes `peft`", fix=f"{how_to_get('hf')}, or use --method masked") from error
    config = peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, lora_dropout=0.0, bias="none", target_modules=_short(model, layers),
        task_type="CAUSAL_LM", base_model_name_or_path=base,
    )  # fmt: skip
    with quiet(), torch.random.fork_rng():
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def _short(model: nn.Module, layers: Collection[str]) -> list[str]:
    """Last parts of names where they mean the same layers, as other tools read them; else full names."""
    ends = {name.rpartition(".")[2] for name in layers}
    meant = {name for name, _ in model.named_modules() if name.rpartition(".")[2] in ends}
    return sorted(ends) if meant == set(layers) else sorted(layers)


def adapter_of(adapted: Any) -> dict[str, nn.Parameter]:
    """The parameters that move, by name."""
    return {name: value for name, value in adapted.named_parameters() if value.requires_grad}


def behind_masks(adapted: Any, masks: Mapping[str, torch.Tensor]) -> None:
    """Let the adapter act through W + M ⊙ (B·A) from now on: what it is merged to, so that merging takes nothing away.

    Added to all entries instead, most of B·A would lie on zeros, and go when they are put back. `masks` are of the
    model's parameters; layers without one are left alone.
    """
    modules: Mapping[str, Any] = dict(adapted.named_modules())
    for name, mask in masks.items():
        layer = modules.get(_PREFIX + name.removesuffix(".weight"))
        if layer is not None and hasattr(layer, "get_delta_weight"):
            layer.forward = _Masked(layer, mask)


@dataclass(frozen=True)
class _Masked:
    """The forward pass of one layer."""

    layer: Any
    mask: torch.Tensor

    def __call__(self, x: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        base = self.layer.get_base_layer()
        W = base.weight + self.mask * self.layer.get_delta_weight("default")
        return linear(x, W.T if type(base).__name__ == "Conv1D" else W, base.bias)


def merged(adapted: Any, layers: Collection[str]) -> dict[str, torch.Tensor]:
    """Parameter of the model → weight with the adapter added to all its entries; the zeros are put back later."""
    modules: Mapping[str, Any] = dict(adapted.named_modules())
    weights: dict[str, torch.Tensor] = {}
    with torch.no_grad():
        for name in layers:
            layer = modules[_PREFIX + name]
            weights[f"{name}.weight"] = layer.get_base_layer().weight + layer.get_delta_weight("default")
    return weights


def save_adapter(adapted: Any, folder: Path) -> None:
    """Write the adapter as peft does: its weights and its config."""
    with quiet():
        adapted.save_pretrained(str(folder), save_embedding_layers=False)
