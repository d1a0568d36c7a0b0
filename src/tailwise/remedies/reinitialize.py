"""Layers that are dead, drawn anew."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.optim import Optimizer

from tailwise.errors import unknown_name
from tailwise.remedies.matrices import linear_matrices


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

    Returns how many entries of each matrix were drawn. Shared weights are drawn once.

    Source: Lu et al. 2020, Dying ReLU and Initialization, arXiv:1903.06733; Dohare et al. 2024, Loss of Plasticity in
    Deep Continual Learning, Nature 632:768 (re-initialising units keeps networks able to learn).
    """
    found = linear_matrices(model, 1)
    wanted = None if layers is None else set(layers)
    for name in wanted or ():
        if name not in found:
            raise unknown_name("matrix", name, found)
    drawn = {}
    for name, weight in found.items():
        dead = _dead(weight) if wanted is None else torch.full_like(weight, name in wanted, dtype=torch.bool)
        count = int(dead.sum())
        if count:
            weight[dead] = _noise(model, name, weight, std, generator)[dead]
            _forget(optimizer, weight)
            drawn[name] = count
    return drawn


def _dead(weight: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(weight).all()):
        return torch.ones_like(weight, dtype=torch.bool)
    alive = weight != 0
    return ~alive.any(1, keepdim=True) | ~alive.any(0, keepdim=True)


def _noise(
    model: nn.Module, name: str, weight: torch.Tensor, std: float | None, generator: torch.Generator | None
) -> torch.Tensor:
    known = getattr(getattr(model, "config", None), "initializer_range", None)
    inputs = weight.shape[1] if isinstance(model.get_submodule(name), nn.Linear) else weight.shape[0]
    spread = std if std is not None else known if isinstance(known, float) else 1 / math.sqrt(inputs)
    # On the CPU, so that a seed gives the same entries everywhere.
    noise = torch.randn(weight.shape, generator=generator) * spread
    return noise.to(weight)


def _forget(optimizer: Optimizer | None, weight: torch.Tensor) -> None:
    if optimizer is not None:
        optimizer.state.pop(weight, None)
