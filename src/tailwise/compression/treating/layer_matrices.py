"""Stored tensors as matrices (out × in), and back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tailwise.checkpoints.orientation import is_stored_in_out
from tailwise.checkpoints.roles import classify


def as_matrices(tensor: torch.Tensor, name: str, config: Mapping[str, Any]) -> torch.Tensor:
    """A stored tensor as (count, out, in): stacked experts are several matrices, all else is one."""
    if is_transposed(name, tuple(tensor.shape), config):
        tensor = tensor.mT
    if tensor.ndim == 3 and classify(name, 3, config).role.startswith("expert_"):
        return tensor
    return tensor.reshape(1, tensor.shape[0], -1)


def from_matrices(matrices: torch.Tensor, like: torch.Tensor, name: str, config: Mapping[str, Any]) -> torch.Tensor:
    """The inverse of `as_matrices`, in the shape and dtype of `like`."""
    if is_transposed(name, tuple(like.shape), config):
        matrices = matrices.mT
    return matrices.reshape(like.shape).to(like.dtype)


def matrix_sizes(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> tuple[int, int]:
    """(inputs, entries) of each matrix in a stored tensor."""
    _, outputs, inputs = as_matrices(torch.empty(shape, device="meta"), name, config).shape
    return inputs, inputs * outputs


def is_transposed(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor is stored (in, out)."""
    return is_stored_in_out(name, shape, classify(name, len(shape), config).role, config)
