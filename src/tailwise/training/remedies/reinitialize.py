"""Layers that are dead, drawn anew."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from tailwise.checkpoints.wrapped import is_sharded, unwrap, whole
from tailwise.core.errors import unknown_name
from tailwise.training.remedies.live_matrices import linear_modules
from tailwise.training.remedies.process_ranks import of_first_rank, placed_like


@torch.no_grad()
def reinitialize_dead_layers(
    model: nn.Module, layers: Iterable[str] | None = None, *, optimizer: Optimizer | None = None,
    std: float | None = None, generator: torch.Generator | None = None,
) -> dict[str, int]:  # fmt: skip
    """Draw dead matrices, or dead rows and columns of matrices, anew from a normal distribution.

    Parameters
    ----------
    layers
        Names of matrices that are drawn as a whole, such as `alarm.layers`. Without it: what is dead by itself. A
        matrix of zeros, or with NaN or Inf, is drawn as a whole; of others, the rows and columns of zeros.
    optimizer
        Whose state of these parameters is dropped, so that old moments do not undo it.
    std
        Of the entries. Without it: the model's `config.initializer_range`, or 1/√inputs.

    Returns how many entries of each matrix were drawn. Shared weights are drawn once, and the B of LoRA, which starts
    at zero on purpose, only where it is named. Of a model in DistributedDataParallel, or sharded by fully_shard, all
    ranks must call this with the same layers; they get what the first one draws.

    Source: Lu et al. 2020, Dying ReLU and Initialization, arXiv:1903.06733; Dohare et al. 2024, Loss of Plasticity in
    Deep Continual Learning, Nature 632:768 (re-initialising units keeps networks able to learn).
    """
    found = linear_modules(model, 1)
    wanted = None if layers is None else set(layers)
    for name in wanted or ():
        if name not in found:
            raise unknown_name("matrix", name, found)
    drawn = {}
    for name, module in found.items():
        if name not in wanted if wanted is not None else ".lora_" in name:
            continue
        weight = module.weight
        now = whole(weight)
        dead = _dead(now) if wanted is None else torch.ones_like(now, dtype=torch.bool)
        count = int(dead.sum())
        if count:
            noise = _noise(_spread(model, module, std), now, generator)
            _put(torch.where(dead, noise, now), weight, model)
            _forget(optimizer, weight)
            drawn[name] = count
    return drawn


def _dead(weight: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(weight).all()):
        return torch.ones_like(weight, dtype=torch.bool)
    alive = weight != 0
    return ~alive.any(1, keepdim=True) | ~alive.any(0, keepdim=True)


def _spread(model: nn.Module, module: Any, std: float | None) -> float:
    """Standard deviation of the entries."""
    if std is not None:
        return std
    known = getattr(getattr(unwrap(model), "config", None), "initializer_range", None)
    inputs = module.weight.shape[1 if isinstance(module, nn.Linear) else 0]
    return known if isinstance(known, float) else 1 / math.sqrt(inputs)


def _noise(spread: float, like: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:
    # On the CPU, so that a seed gives the same entries everywhere.
    return (torch.randn(like.shape, generator=generator) * spread).to(like)


def _put(values: torch.Tensor, weight: torch.Tensor, model: nn.Module) -> None:
    """Write what the first rank has."""
    weight.copy_(placed_like(values, weight) if is_sharded(weight) else of_first_rank(values, model, weight))


def _forget(optimizer: Optimizer | None, weight: torch.Tensor) -> None:
    if optimizer is not None:
        optimizer.state.pop(weight, None)
