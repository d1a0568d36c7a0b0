"""Layers that are dead, drawn anew."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from torch import nn
from torch.optim import Optimizer

from tailwise.checkpoints.formats.memory import MemoryCheckpoint, class_of, config_of
from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.wrapped import is_sharded, plain_name, unwrap, whole
from tailwise.core.errors import unknown_name
from tailwise.training.remedies.live_matrices import as_matrix, linear_modules, weight_matrices
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
        Names of matrices that are drawn as a whole, such as `alarm.layers`, or of parts of fused ones
        (`attn.in_proj_weight#k`), of which those parts are. Without it: what is dead by itself. A matrix of zeros, or
        with NaN or Inf, is drawn as a whole; of others, the rows and columns of zeros.
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
    matrices = weight_matrices(model, 1)
    first = {id(module.weight) for module in linear_modules(model, 1).values() if not isinstance(module, nn.Linear)}
    wanted = None if layers is None else _wanted(layers, matrices)
    drawn = {}
    for name, weight in matrices.items():
        if name not in wanted if wanted is not None else ".lora_" in name:
            continue
        now = whole(weight)
        dead = _dead(now) if wanted is None else _parts(now, name, wanted[name], model)
        count = int(dead.sum())
        if count:
            inputs = now.shape[0] if id(weight) in first else as_matrix(now).shape[1]
            noise = _noise(_spread(model, inputs, std), now, generator)
            _put(torch.where(dead, noise, now), weight, model)
            _forget(optimizer, weight)
            drawn[name] = count
    return drawn


def _wanted(layers: Iterable[str], matrices: Mapping[str, nn.Parameter]) -> dict[str, set[str]]:
    """Matrix → its parts that are named, as `q` of `attn.in_proj_weight#q`; "" where it is meant as a whole."""
    wanted: dict[str, set[str]] = {}
    for layer in layers:
        name, _, part = layer.partition("#")
        if name not in matrices:
            raise unknown_name("matrix", layer, matrices)
        wanted.setdefault(name, set()).add(part)
    return wanted


def _parts(weight: torch.Tensor, name: str, parts: set[str], model: nn.Module) -> torch.Tensor:
    """Which entries are those of some parts of a fused matrix, bool of the weight's shape."""
    if "" in parts:
        return torch.ones_like(weight, dtype=torch.bool)
    # The parts of a matrix of numbers 0, 1, 2, … say which entries are theirs, however it is fused.
    shapes = {plain_name(n): p.shape for n, p in unwrap(model).named_parameters()}
    stored = name if name in shapes else f"{name}.weight"
    tensors = {other: torch.empty(shape, device="meta") for other, shape in shapes.items()}
    tensors[stored] = torch.arange(weight.numel(), dtype=torch.float64).view(weight.shape)
    checkpoint = MemoryCheckpoint("parts", tensors, config=config_of(unwrap(model)))
    checkpoint.module_kinds = {plain_name(n): class_of(part) for n, part in unwrap(model).named_modules()}
    sources = {source.name: source for source in group(checkpoint, conv="flatten", min_evals=1)[0]}
    mask = torch.zeros(weight.numel(), dtype=torch.bool)
    for part in parts:
        if f"{name}#{part}" not in sources:
            raise unknown_name("matrix", f"{name}#{part}", sources)
        for matrix in load(sources[f"{name}#{part}"], checkpoint):
            for block in matrix.row_blocks(1 << 62):
                mask[block.flatten().long()] = True
    return mask.view(weight.shape).to(weight.device)


def _dead(weight: torch.Tensor) -> torch.Tensor:
    if not bool(torch.isfinite(weight).all()):
        return torch.ones_like(weight, dtype=torch.bool)
    alive = as_matrix(weight) != 0
    return (~alive.any(1, keepdim=True) | ~alive.any(0, keepdim=True)).view(weight.shape)


def _spread(model: nn.Module, inputs: int, std: float | None) -> float:
    """Standard deviation of the entries."""
    if std is not None:
        return std
    known = getattr(getattr(unwrap(model), "config", None), "initializer_range", None)
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
