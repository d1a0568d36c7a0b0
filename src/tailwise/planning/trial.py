"""A model that is compressed, scored and made whole again, as often as a search asks."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailwise.compression.applying.data_free import as_matrices, from_matrices
from tailwise.compression.operators.operator import Activations, Need
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.compression.walking.calibrate import Inputs
from tailwise.compression.walking.statistics import of_group
from tailwise.compression.walking.walk import Block, walk_blocks
from tailwise.errors import UsageError
from tailwise.planning.changes import Change, Pruning, Quantizing, change_of
from tailwise.planning.material import Material, Text
from tailwise.planning.prefix import Prefix

#: Bytes of XᵀX of all layers together; above it trials take the nearest operator that needs less.
MOST_HESSIANS = 6 << 30
#: Bytes of changed tensors that are kept, so that they need not be made again.
MOST_MADE = 4 << 30


@dataclass
class Trial:
    """The model, and what each planned tensor is in it.

    In `losses` the inputs of the layers are those of the dense model, measured once, where applying a plan measures
    each block anew behind the changed ones: it is cheap and close, and finds plans. `applied_losses` judges them.
    """

    model: nn.Module
    parameters: Mapping[str, nn.Parameter]  # stored tensor → its place in the model
    places: Mapping[str, str]  # parameter → stored tensor
    config: Mapping[str, Any]
    dtypes: Mapping[str, torch.dtype]  # stored tensor → as it is stored
    change: Change
    material: Material = field(default_factory=Text)
    inputs: Mapping[str, Activations] = field(default_factory=dict)  # stored tensor → what its layer sees
    runs: int = 0
    _dense: dict[str, torch.Tensor] = field(default_factory=dict)
    _now: dict[str, Hashable] = field(default_factory=dict)
    _base: dict[str, Hashable] = field(default_factory=dict)
    _made: dict[tuple[str, Hashable], torch.Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._prefix = Prefix(self.model, self.material)
        self._block = {tensor: self._prefix.block_of(place) for place, tensor in self.places.items()}

    def losses(self, plan: Plan, windows: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss a token of every window under a plan, (n,)."""
        self._set({item.tensor: item for item in plan})
        self.runs += 1
        return self._prefix.losses(windows, self._first_changed())

    def settle(self, plan: Plan, windows: torch.Tensor) -> NDArray[np.float64]:
        """As `losses`; plans that differ from this one in late blocks alone are scored faster from here on."""
        self._base, self._made = {}, self._made if self.change.few else {}
        self._set({item.tensor: item for item in plan})
        self._base = dict(self._now)
        if not self.change.few:
            self._made = {(name, key): self.parameters[name].detach().clone() for name, key in self._now.items()}
        return self._prefix.record(windows)

    def applied_losses(self, plan: Plan, calibration: torch.Tensor, windows: torch.Tensor) -> NDArray[np.float64]:
        """As `losses`, with the plan carried out as `apply` does: the inputs of a block come from the changed ones."""
        if self.change.needs == "none":
            return self.losses(plan, windows)
        for tensor, parameter in self.parameters.items():
            self._dense.setdefault(tensor, parameter.detach().clone())
        self.restore()
        wanted = {item.tensor: item for item in plan if self.change.key(item) is not None}
        self.runs += 1
        try:
            walk_blocks(self.model, self.material.inputs(calibration), _Apply(self, wanted))
            return self.material.losses(self.model, windows)
        finally:
            for tensor in wanted:
                self._put(tensor, self._dense[tensor])

    def dense_losses(self, windows: torch.Tensor) -> NDArray[np.float64]:
        """Mean loss a token of every window without any plan, (n,)."""
        self.restore()
        return self.material.losses(self.model, windows)

    def restore(self) -> None:
        """The dense weights again."""
        self._set({})

    def dense(self, tensor: str) -> torch.Tensor:
        """(count, out, in): the matrices of a tensor without any plan, as the model computes with them."""
        weight = self._dense.get(tensor, self.parameters[tensor].detach())
        return as_matrices(weight, tensor, self.config)

    def changed(self, decision: Decision, found: Activations | None) -> torch.Tensor:
        """The tensor of an entry after it, with these inputs."""
        tensor = decision.tensor
        weight = self._dense.setdefault(tensor, self.parameters[tensor].detach().clone())
        seen = of_group(found, 0) if found is not None else None
        matrices = as_matrices(weight.to(self.dtypes[tensor]), tensor, self.config)
        done = torch.stack([self.change(W, decision, seen).to(self.dtypes[tensor]) for W in matrices])
        return from_matrices(done, weight, tensor, self.config)

    def put(self, decision: Decision, found: Activations | None) -> None:
        """Change one tensor where it is; `applied_losses` makes it whole again."""
        self._put(decision.tensor, self.changed(decision, found))

    def _set(self, wanted: Mapping[str, Decision]) -> None:
        for tensor in [name for name in self._now if name not in wanted]:
            self._put(tensor, self._dense[tensor])
            del self._now[tensor]
        for tensor, decision in wanted.items():
            key = self.change.key(decision)
            if self._now.get(tensor) == key:
                continue
            if key is None:
                self._put(tensor, self._dense[tensor])
                del self._now[tensor]
            else:
                self._put(tensor, self._kept(decision, key))
                self._now[tensor] = key

    def _kept(self, decision: Decision, key: Hashable) -> torch.Tensor:
        """The changed tensor, made once where it is likely to be asked for again."""
        found = self._made.get((decision.tensor, key))
        if found is not None:
            return found
        found = self.changed(decision, self.inputs.get(decision.tensor)).to(self.parameters[decision.tensor].dtype)
        if self.change.few and sum(item.nbytes for item in self._made.values()) < MOST_MADE:
            self._made[decision.tensor, key] = found
        return found

    def _first_changed(self) -> int:
        """The first block whose weights are others than those of the settled plan."""
        names = self._base.keys() | self._now.keys()
        moved = [self._block[name] for name in names if self._base.get(name) != self._now.get(name)]
        return min(moved, default=0)

    def _put(self, tensor: str, values: torch.Tensor) -> None:
        self.parameters[tensor].data.copy_(values)


def trial_of(
    model: nn.Module,
    places: Mapping[str, str],
    plan: Plan,
    windows: torch.Tensor,
    stored: tuple[Mapping[str, Any], Mapping[str, torch.dtype]],
    material: Material | None = None,
) -> tuple[Trial, tuple[str, ...]]:
    """A trial of plans for the tensors of `plan`, and notes.

    `places` are stored tensor → parameter; `windows` (n, length), rows of `material`, calibrate the operators that look
    at inputs; `stored` are the config of the checkpoint and the dtypes of its tensors.
    """
    named = dict(model.named_parameters())
    lost = [item.tensor for item in plan if places.get(item.tensor) not in named]
    if lost:
        raise UsageError(
            f"{len(lost)} tensors of the plan have no place in the model, first {lost[0]}",
            fix="leave them out by --layers, or plan without a search",
        )
    parameters = {item.tensor: named[places[item.tensor]] for item in plan}
    change, notes = _affordable(change_of(plan), plan)
    tensors = {places[item.tensor]: item.tensor for item in plan}
    found = material or Text()
    trial = Trial(model, parameters, tensors, *stored, change, found)
    if change.needs != "none":
        trial.inputs = seen_by(model, tensors, change.needs, found.inputs(windows))
    return trial, notes


def _affordable(change: Change, plan: Plan) -> tuple[Change, tuple[str, ...]]:
    hessians = sum(4 * max(item.shape or (0,)) ** 2 for item in plan)
    if change.needs != "hessian" or hessians <= MOST_HESSIANS:
        return change, ()
    nearest: Change = Pruning("wanda") if isinstance(change, Pruning) else Quantizing("rtn")
    return nearest, (f"trials took {nearest.name}: {change.name} would hold {hessians >> 30} GiB of XᵀX",)


def seen_by(model: nn.Module, tensors: Mapping[str, str], need: Need, windows: Inputs) -> dict[str, Activations]:
    """Stored tensor → what its layer sees in one pass over the windows; `tensors` are parameter → stored tensor."""
    visitor = _Look(tensors, need)
    walk_blocks(model, windows, visitor, edits=False)
    return visitor.found


@dataclass
class _Apply:
    """Visits every block and changes it by what its layers see behind the changed ones before."""

    trial: Trial
    wanted: Mapping[str, Decision]  # by stored tensor

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        return {name: self.trial.change.needs for name in block.layers() if self._tensor(name) in self.wanted}

    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        for name in block.layers():
            tensor = self._tensor(name)
            if tensor in self.wanted:
                self.trial.put(self.wanted[tensor], found.get(name))

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
