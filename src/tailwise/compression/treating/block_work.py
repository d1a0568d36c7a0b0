"""What a plan does at each block of a model: its layers are treated, or taken from what an earlier run has kept.

Trials and writers go through a model by this alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from tailwise.compression.operators.operator import OperatorResult
from tailwise.compression.operators.registered import WITHOUT_DATA
from tailwise.compression.plans.decision import Decision
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.treatment import TreatmentSettings, operator_for
from tailwise.compression.treating.kept_grids import kept_grids
from tailwise.compression.treating.treated import treated_layer
from tailwise.core.errors import UsageError
from tailwise.models.activations import Activations, Need
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.experts import ExpertStack
from tailwise.models.walking.hosts import Host, layer_of
from tailwise.models.walking.statistics import few_tokens, matrices_of, reaching, weight_of
from tailwise.models.walking.walk import blocks_of, vision_blocks_of

_SHOWN = 5


@dataclass(frozen=True)
class LayerJob:
    """One layer to treat."""

    decision: Decision
    dtype: torch.dtype  # as stored


class Shelf(Protocol):
    """Where finished blocks are kept: a `Journal`, or nowhere."""

    finished: set[str]

    def keep(self, block: str, index: int, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> None:
        """Keep what a block came to, by stored names."""

    def read(self, name: str) -> torch.Tensor | None:
        """A tensor of a finished block."""


@dataclass
class Nowhere:
    """For trials: nothing is kept, and nothing goes on."""

    finished: set[str] = field(default_factory=set)

    def keep(self, block: str, index: int, tensors: Mapping[str, torch.Tensor], notes: list[str]) -> None:
        """Keep nothing."""

    def read(self, name: str) -> torch.Tensor | None:  # noqa: ARG002 - see Shelf
        """Nothing was kept."""
        return None


def jobs_of(
    plan: Plan, host: Host, dtypes: Mapping[str, torch.dtype], how: TreatmentSettings, *, images: bool = False
) -> dict[str, LayerJob]:
    """Layer → what is to be done. `UsageError` where an entry that changes its tensor is no layer of a block.

    With `images`, of a block of the tower that reads them too. Entries that an operator leaves to the one in its place
    (`Operator.anywhere`) have no job.
    """
    wanted = [decision for decision in plan if not decision.treatment.idle]
    pictured = {name for block in vision_blocks_of(host.model) for name in block.layers()}
    layers = {name for block in blocks_of(host.model) for name in block.layers()} | (pictured if images else set())
    places = {decision.tensor: layer_of(host.places, decision.tensor, layers) for decision in wanted}
    lost = [decision for decision in wanted if places[decision.tensor] is None]
    _check_images([item for item in lost if layer_of(host.places, item.tensor, pictured)], plan)
    if not how.operator.anywhere:
        _check_reached(lost, plan, how)
    return {layer: LayerJob(item, dtypes[item.tensor]) for item in wanted if (layer := places[item.tensor]) is not None}


def _check_images(lost: Sequence[Decision], plan: Plan) -> None:
    if lost:
        raise UsageError(
            f"{plan.operator} looks at the inputs of each layer, and {len(lost)} of the plan's see images",
            where=lost[0].tensor,
            fix="apply with --images DIR, or plan without --also vision",
        )


def _check_reached(lost: Iterable[Decision], plan: Plan, how: TreatmentSettings) -> None:
    missing = list(lost)
    if not missing:
        return
    more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
    stacked = any(item.role.startswith("expert_") for item in missing)
    why = " (transformers holds the experts of a block in one tensor, and what each is given is not seen)"
    raise UsageError(
        f"{plan.operator} reaches linear layers and convolutions inside the blocks alone; it does not reach "
        f"{', '.join(item.tensor for item in missing[:_SHOWN])}{more}{why if stacked else ''}",
        fix=f"take these entries out of the plan, or use the operator {WITHOUT_DATA[how.operator.does]}",
    )


@dataclass
class BlockWork:
    """A `walk.Visitor`: a block that is finished is on the shelf at once."""

    jobs: Mapping[str, LayerJob]
    shelf: Shelf
    how: TreatmentSettings

    @property
    def need(self) -> Need:
        """What is to be known of the inputs of each layer."""
        return self.how.operator.needs

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        mine = {name: module for name, module in block.layers().items() if name in self.jobs}
        if block.name not in self.shelf.finished:
            return dict.fromkeys(mine, self.need)
        for name, module in mine.items():
            read_back = self.shelf.read(self.jobs[name].decision.tensor)
            if read_back is not None:
                put_in(module, read_back)
        return {}

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        treated: dict[str, torch.Tensor] = {}
        notes: list[str] = []
        for name, module in block.layers().items():
            if name in self.jobs:
                treated |= self._treat(module, self.jobs[name], activations.get(name), notes)
        if few := few_tokens({name: seen for name, seen in activations.items() if name in self.jobs}):
            count, of, least = few
            notes.append(f"{block.name}: {count} of {of} experts saw few tokens, one only {least}: give more text")
        self.shelf.keep(block.name, block.index, treated, notes)

    def made(self, job: LayerJob, weight: torch.Tensor, done: Sequence[OperatorResult]) -> None:
        """A hook: `done` is what became of each matrix of a layer's weight."""

    def _treat(
        self, module: nn.Module, job: LayerJob, activations: Activations | None, notes: list[str]
    ) -> dict[str, torch.Tensor]:
        """Treat a layer in place; the blocks after see the model that is written."""
        tensor = job.decision.tensor
        if self.how.looks:
            notes += [
                f"{_named(tensor, module, group)}: no input reached it, so it was {_instead(self.how)}"
                for group in range(len(matrices_of(module)))
                if reaching(activations, group) is None  # an expert that no token was sent to
            ]
        weight = weight_of(module).detach().to(job.dtype)
        stored, done = treated_layer(module, weight, job.decision, self.how, activations)
        self.made(job, weight, done)
        put_in(module, stored)
        return {tensor: stored, **kept_grids(tensor, done)}


def _named(tensor: str, module: nn.Module, group: int) -> str:
    """The tensor, and which expert of it where it holds several."""
    return f"{tensor}[{group}]" if isinstance(module, ExpertStack) else tensor


def _instead(how: TreatmentSettings) -> str:
    name = operator_for(how, None).name
    return "rounded to nearest" if name == WITHOUT_DATA["quantize"] else f"pruned by {name}"


def put_in(module: nn.Module, stored: torch.Tensor) -> None:
    """Give a layer a weight."""
    weight = weight_of(module)
    weight.data.copy_(stored.to(weight.device, weight.dtype))
