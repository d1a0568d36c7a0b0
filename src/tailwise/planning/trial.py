"""A model in memory that is pruned, scored and made whole again, as often as a search asks."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailwise.compression.data_free import amount_of, as_matrices, does_nothing, from_matrices
from tailwise.compression.plan import Decision, Plan
from tailwise.compression.prune.pruner import PRUNERS, Activations, Amount, Need, Pruner
from tailwise.compression.statistics import of_group
from tailwise.compression.walk import Block, walk_blocks
from tailwise.errors import UsageError
from tailwise.evaluation.losses import window_losses

#: Bytes of XᵀX of all layers together; above it a trial of `sparsegpt` prunes by `wanda`, which needs none.
MOST_HESSIANS = 6 << 30


@dataclass
class Trial:
    """The model, and what each planned tensor is in it.

    In `losses` the inputs of the layers are those of the dense model, measured once, where applying a plan measures
    each block anew behind the pruned ones: it is cheap and close, and finds plans. `applied_losses` judges them.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]  # stored tensor → its place in the model
    places: Mapping[str, str]  # parameter → stored tensor
    config: Mapping[str, Any]
    pruner: Pruner
    inputs: Mapping[str, Activations] = field(default_factory=dict)  # stored tensor → what its layer sees
    runs: int = 0
    seconds: float = 0.0
    _dense: dict[str, torch.Tensor] = field(default_factory=dict)
    _now: dict[str, Amount] = field(default_factory=dict)

    def losses(self, plan: Plan, windows: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss a token of every window under a plan, (n,)."""
        began = time.perf_counter()
        self._set({item.tensor: item for item in plan})
        found = window_losses(self.model, windows)
        self.runs += 1
        self.seconds += time.perf_counter() - began
        return found

    def applied_losses(self, plan: Plan, calibration: torch.Tensor, windows: torch.Tensor) -> NDArray[np.float64]:
        """As `losses`, with the plan carried out as `apply` does: the inputs of a block come from the pruned ones."""
        if self.pruner.needs == "none":
            return self.losses(plan, windows)
        for tensor, parameter in self.parameters.items():
            self._dense.setdefault(tensor, parameter.detach().clone())
        self.restore()
        wanted = {item.tensor: amount_of(item) for item in plan if not does_nothing(item)}
        try:
            walk_blocks(self.model, calibration, _Prune(self, wanted))
            return window_losses(self.model, windows)
        finally:
            for tensor in wanted:
                self._put(tensor, self._dense[tensor])

    def restore(self) -> None:
        """The dense weights again."""
        self._set({})

    @property
    def pace(self) -> float:
        """Seconds of one trial, on the mean."""
        return self.seconds / self.runs if self.runs else 0.0

    def _set(self, wanted: Mapping[str, Decision]) -> None:
        for tensor in [name for name in self._now if name not in wanted]:
            self._put(tensor, self._dense[tensor])
            del self._now[tensor]
        for tensor, decision in wanted.items():
            amount = Amount() if does_nothing(decision) else amount_of(decision)
            if self._now.get(tensor, Amount()) != amount:
                self._put(tensor, self._pruned(tensor, amount))
                self._now[tensor] = amount

    def _pruned(self, tensor: str, amount: Amount) -> torch.Tensor:
        weight = self._dense.setdefault(tensor, self.parameters[tensor].detach().clone())
        return weight if amount == Amount() else self.pruned(tensor, amount, self.inputs.get(tensor))

    def pruned(self, tensor: str, amount: Amount, found: Activations | None) -> torch.Tensor:
        """The dense tensor, pruned with these inputs; by magnitude where an operator that needs them has none."""
        weight = self._dense[tensor]
        pruner = self.pruner if found is not None or self.pruner.needs == "none" else PRUNERS["magnitude"]
        seen = of_group(found, 0) if found is not None else None
        matrices = as_matrices(weight, tensor, self.config)
        done = torch.stack([pruner(W, amount, seen).weight for W in matrices])
        return from_matrices(done, weight, tensor, self.config)

    def _put(self, tensor: str, values: torch.Tensor) -> None:
        self.parameters[tensor].data.copy_(values)

    def put(self, tensor: str, amount: Amount, found: Activations | None) -> None:
        """Prune one tensor where it is; `applied_losses` makes it whole again."""
        self._put(tensor, self.pruned(tensor, amount, found))


def trial_of(
    model: nn.Module, places: Mapping[str, str], plan: Plan, windows: torch.Tensor, config: Mapping[str, Any]
) -> tuple[Trial, tuple[str, ...]]:
    """A trial of plans for the tensors of `plan`, and notes.

    `places` are stored tensor → parameter; `windows` (n, length) calibrate the operators that look at inputs.
    """
    named = dict(model.named_parameters())
    lost = [item.tensor for item in plan if places.get(item.tensor) not in named]
    if lost:
        raise UsageError(
            f"{len(lost)} tensors of the plan have no place in the model, first {lost[0]}",
            fix="leave them out by --layers, or plan without a search",
        )
    parameters = {item.tensor: named[places[item.tensor]] for item in plan}
    pruner, notes = _affordable(PRUNERS[plan.operator], plan)
    tensors = {places[item.tensor]: item.tensor for item in plan}
    trial = Trial(model, parameters, tensors, config, pruner)
    if pruner.needs != "none":
        trial.inputs = _seen(model, tensors, pruner.needs, windows)
    return trial, notes


def _affordable(pruner: Pruner, plan: Plan) -> tuple[Pruner, tuple[str, ...]]:
    hessians = sum(4 * max(item.shape or (0,)) ** 2 for item in plan)
    if pruner.needs == "hessian" and hessians > MOST_HESSIANS:
        return PRUNERS["wanda"], (f"trials pruned by wanda: {pruner.name} would take {hessians >> 30} GiB of XᵀX",)
    return pruner, ()


def _seen(model: nn.Module, tensors: Mapping[str, str], need: Need, windows: torch.Tensor) -> dict[str, Activations]:
    visitor = _Look(tensors, need)
    walk_blocks(model, windows, visitor, edits=False)
    return visitor.found


@dataclass
class _Prune:
    """Visits every block and prunes it by what its layers see behind the pruned ones before."""

    trial: Trial
    wanted: Mapping[str, Amount]  # stored tensor → how much

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        return {name: self.trial.pruner.needs for name in block.layers() if self._tensor(name) in self.wanted}

    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        for name in block.layers():
            tensor = self._tensor(name)
            if tensor in self.wanted:
                self.trial.put(tensor, self.wanted[tensor], found.get(name))

    def _tensor(self, layer: str) -> str:
        return self.trial.places.get(f"{layer}.weight", "")


@dataclass
class _Look:
    """Visits every block and keeps what its layers see."""

    tensors: Mapping[str, str]  # parameter → stored tensor
    need: Need
    found: dict[str, Activations] = field(default_factory=dict)

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        return {name: self.need for name in block.layers() if f"{name}.weight" in self.tensors}

    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:  # noqa: ARG002 - see Visitor
        """See `Visitor`."""
        self.found |= {self.tensors[f"{name}.weight"]: seen for name, seen in found.items()}
