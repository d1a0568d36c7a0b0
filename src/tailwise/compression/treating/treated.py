"""Tensors as their treatment leaves them. What is tried and what is written comes from these two functions alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.orientation import is_stored_in_out
from tailwise.checkpoints.roles import classify
from tailwise.compression.operators.operator import OperatorResult
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import TreatmentSettings
from tailwise.core.errors import TailwiseError
from tailwise.models.activations import Activations
from tailwise.models.walking.statistics import matrices_of, reaching, stored_from
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import Reach


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


@contextmanager
def _named(decision: Decision) -> Iterator[None]:
    """Errors about a matrix say of which tensor."""
    try:
        yield
    except TailwiseError as error:
        raise type(error)(error.what, where=decision.tensor, fix=error.fix) from error


def treated_tensor(
    stored: torch.Tensor, decision: Decision, how: TreatmentSettings, config: Mapping[str, Any]
) -> torch.Tensor:
    """A stored tensor after its treatment, by its weights alone."""
    matrices = as_matrices(stored, decision.tensor, config)
    with _named(decision):
        treated = [
            decision.treatment.do(W, how.at(decision.tensor, number, len(matrices))).weight.to(stored.dtype)
            for number, W in enumerate(matrices)
        ]
    return from_matrices(torch.stack(treated), stored, decision.tensor, config)


def treated_layer(
    module: nn.Module, weight: torch.Tensor, decision: Decision, how: TreatmentSettings, activations: Activations | None
) -> tuple[torch.Tensor, list[OperatorResult]]:
    """The weight of a layer, in the dtype that it is stored in, after its treatment; and each matrix by itself.

    `found` is what its groups see; None where no input reached it.
    """
    with _named(decision):
        matrices = matrices_of(module, weight)
        done = [
            decision.treatment.do(W, how.at(decision.tensor, group, len(matrices)), reaching(activations, group))
            for group, W in enumerate(matrices)
        ]
    return stored_from(module, torch.stack([item.weight for item in done])).to(weight.dtype), done


class Treated:
    """The tensors of a plan, one at a time: no text, no model. `shared` are those of `TreatmentSettings`."""

    def __init__(
        self,
        plan: Plan,
        checkpoint: Checkpoint,
        device: str,
        *,
        keep_zeros: bool = False,
        shared: Mapping[str, tuple[Reach, ...]] | None = None,
    ) -> None:
        self._decisions = {item.tensor: item for item in plan if not item.treatment.idle}
        self._how = replace(how_of(plan), keep_zeros=keep_zeros, shared=shared or {})
        self._checkpoint, self._device = checkpoint, device

    def __call__(self, name: str) -> torch.Tensor | None:
        """The new tensor, or None where the plan leaves it alone."""
        decision = self._decisions.get(name)
        if decision is None:
            return None
        stored = self._checkpoint.read(name)
        return treated_tensor(stored.to(self._device), decision, self._how, self._checkpoint.config).cpu()

    def grids(self, decision: Decision, matrices: torch.Tensor) -> list[ValueGrid] | None:
        """The scales that the operator takes from the source, (count, out, in); None for a plain cast."""
        how, count = self._how, len(matrices)
        grids = [
            decision.treatment.do(W, how.at(decision.tensor, number, count)).grid for number, W in enumerate(matrices)
        ]
        known = [grid for grid in grids if grid is not None]
        return known or None
