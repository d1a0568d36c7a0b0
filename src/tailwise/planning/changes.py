"""What an entry of a plan makes of a matrix, for trials of plans to prune and to quantize alike."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Protocol

import torch

from tailwise.compression.applying.data_free import amount_of, does_nothing
from tailwise.compression.operators.operator import Activations, Need, Target
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.number_formats.formats import parse_format


class Change(Protocol):
    """One operator."""

    @property
    def name(self) -> str:
        """Of the operator."""

    @property
    def needs(self) -> Need:
        """What is to be known of the inputs of a layer."""

    @property
    def few(self) -> bool:
        """Whether entries ask for one of a few things, so that what was computed is worth keeping."""

    def key(self, decision: Decision) -> Hashable | None:
        """Entries with equal keys change a tensor alike; None leaves it as it is."""

    def __call__(self, W: torch.Tensor, decision: Decision, seen: Activations | None) -> torch.Tensor:
        """The changed matrix, (out × in), as its dtype says; without inputs, as an operator that needs none."""


@dataclass(frozen=True)
class Pruning:
    """Entries that remove weights."""

    name: str
    few = False

    @property
    def needs(self) -> Need:
        """See `Change`."""
        return OPERATORS[self.name].needs

    def key(self, decision: Decision) -> Hashable | None:
        """See `Change`."""
        return None if does_nothing(decision) else amount_of(decision)

    def __call__(self, W: torch.Tensor, decision: Decision, seen: Activations | None) -> torch.Tensor:
        """See `Change`."""
        pruner = OPERATORS[self.name if seen is not None or self.needs == "none" else "magnitude"]
        return pruner(W, amount_of(decision), seen).weight


@dataclass(frozen=True)
class Quantizing:
    """Entries that round weights to a number format."""

    name: str
    act_order: bool = False
    few = True

    @property
    def needs(self) -> Need:
        """See `Change`."""
        return OPERATORS[self.name].needs

    def key(self, decision: Decision) -> Hashable | None:
        """See `Change`."""
        return decision.format

    def __call__(self, W: torch.Tensor, decision: Decision, seen: Activations | None) -> torch.Tensor:
        """See `Change`."""
        quantizer = OPERATORS[self.name if seen is not None or self.needs == "none" else "rtn"]
        return quantizer(W, Target(parse_format(decision.format or ""), self.act_order), seen).weight


def change_of(plan: Plan) -> Change:
    """The operator of a plan."""
    if plan.kind == "quantize":
        return Quantizing(plan.operator, plan.settings.get("act_order") is True)
    return Pruning(plan.operator)
