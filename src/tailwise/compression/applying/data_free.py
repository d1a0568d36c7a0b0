"""Operators that look at the weights alone: tensor by tensor, without a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.orientation import is_stored_in_out
from tailwise.checkpoints.roles import classify
from tailwise.compression.operators.operator import Amount
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.patterns import parse_pattern
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.errors import TailwiseError


def amount_of(decision: Decision) -> Amount:
    """What a decision asks of one matrix."""
    pattern = parse_pattern(decision.pattern, mixed=False)
    fixed = None if pattern.kept is None or pattern.group is None else (pattern.kept, pattern.group)
    return Amount(decision.sparsity or 0.0, fixed, decision.rank)


def does_nothing(decision: Decision) -> bool:
    """Whether the entry leaves its tensor as it is."""
    return not decision.sparsity and decision.rank is None and parse_pattern(decision.pattern).group is None


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


def input_size(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> int:
    """Extent of the input axis of the matrices in a stored tensor."""
    return int(as_matrices(torch.empty(shape, device="meta"), name, config).shape[2])


def is_transposed(name: str, shape: tuple[int, ...], config: Mapping[str, Any]) -> bool:
    """Whether a tensor is stored (in, out)."""
    return is_stored_in_out(name, shape, classify(name, len(shape), config).role, config)


class Changes:
    """The tensors of a plan as the operator leaves them, one at a time."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, device: str) -> None:
        self._decisions = {item.tensor: item for item in plan if not does_nothing(item)}
        self._pruner = OPERATORS[plan.operator]
        self._checkpoint, self._device = checkpoint, device

    def __call__(self, name: str) -> torch.Tensor | None:
        """The new tensor, or None where the plan leaves it alone."""
        decision = self._decisions.get(name)
        if decision is None:
            return None
        config, amount = self._checkpoint.config, amount_of(decision)
        stored = self._checkpoint.read(name)
        matrices = as_matrices(stored, name, config).to(self._device)
        try:
            found = [self._pruner(W, amount).weight.cpu() for W in matrices]
        except TailwiseError as error:
            raise type(error)(error.what, where=name, fix=error.fix) from error
        return from_matrices(torch.stack(found), stored, name, config)
