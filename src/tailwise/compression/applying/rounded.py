"""The tensors of a plan rounded to nearest, one at a time: no text, no model."""

from __future__ import annotations

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.compression.applying.data_free import as_matrices, from_matrices
from tailwise.compression.operators.operator import Target
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.errors import TailwiseError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.scaled import ScaledFormat


class Rounding:
    """The tensors of a plan rounded to nearest, one at a time."""

    def __init__(self, plan: Plan, checkpoint: Checkpoint, device: str, *, keep_zeros: bool = False) -> None:
        self._decisions = {item.tensor: item for item in plan}
        self._quantizer = OPERATORS[plan.operator]
        self._checkpoint, self._device, self._keep_zeros = checkpoint, device, keep_zeros

    def __call__(self, name: str) -> torch.Tensor | None:
        """The new tensor, or None where the plan leaves it alone."""
        decision = self._decisions.get(name)
        if decision is None:
            return None
        target, config = (
            Target(parse_format(decision.format or ""), keep_zeros=self._keep_zeros),
            self._checkpoint.config,
        )
        stored = self._checkpoint.read(name)
        matrices = as_matrices(stored, name, config).to(self._device)
        try:
            found = [self._quantizer(W, target).weight.to(stored.dtype).cpu() for W in matrices]
        except TailwiseError as error:
            raise type(error)(error.what, where=name, fix=error.fix) from error
        return from_matrices(torch.stack(found), stored, name, config)


def own_grids(decision: Decision, matrices: torch.Tensor) -> list[Grid] | None:
    """The scales that rounding to nearest takes from the source."""
    chosen = parse_format(decision.format or "")
    return [chosen.grid(W) for W in matrices] if isinstance(chosen, ScaledFormat) else None
