"""What keeps the ranks of a distributed training alike: one rank's numbers for all of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.wrapped import is_sharded


def of_first_rank(values: torch.Tensor, model: nn.Module, like: torch.Tensor) -> torch.Tensor:
    """`values` as the first rank has them: of those that share `like`, or of the replicas where `model` is DDP's.

    A collective there, which every rank must call; elsewhere the values themselves. Replicas average gradients and
    nothing else, so what is drawn or measured on each of them must be made equal.
    """
    if is_sharded(like):
        sharded: Any = like
        mesh = sharded.device_mesh
        return placed_like(values, like, replicated=True).to_local() if mesh.size() > 1 else values
    if isinstance(model, nn.parallel.DistributedDataParallel):
        import torch.distributed as dist

        group: Any = model.process_group
        moved = values.to(like.device).contiguous()
        dist.broadcast(moved, src=dist.get_global_rank(group, 0), group=group)
        return moved.to(values.device)
    return values


def placed_like(values: torch.Tensor, like: torch.Tensor, *, replicated: bool = False) -> Any:
    """`values`, which are whole, in parts on the ranks of `like`, from the first of them; or whole on each of them."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    sharded: Any = like
    mesh = sharded.device_mesh
    placements = [Replicate()] * mesh.ndim if replicated else sharded.placements
    return distribute_tensor(values.to(like.device), mesh, placements)
