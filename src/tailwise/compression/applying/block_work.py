"""What a plan does at each block of a model: its layers are changed, or taken from what an earlier run has kept."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.compression.applying.journal import Journal
from tailwise.compression.operators.operator import Activations, Need
from tailwise.compression.plans.plan import Decision, Plan
from tailwise.compression.walking.hosts import Host, layer_of
from tailwise.compression.walking.statistics import stored_from, weight_of
from tailwise.compression.walking.walk import Block, blocks_of
from tailwise.errors import TailwiseError, UsageError

_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """One layer to change."""

    decision: Decision
    dtype: torch.dtype  # as stored


def jobs_for(
    plan: Plan, decisions: Collection[Decision], host: Host, dtypes: Mapping[str, torch.dtype], *, instead: str
) -> dict[str, Job]:
    """Layer → what is to be done, of these entries of a plan.

    `UsageError` where one is no layer of a block; `instead` is the operator that would reach it.
    """
    layers = {name for block in blocks_of(host.model) for name in block.layers()}
    places = {decision.tensor: layer_of(host.places, decision.tensor, layers) for decision in decisions}
    lost = [tensor for tensor, layer in places.items() if layer is None]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        stacked = any(item.role.startswith("expert_") and item.tensor in lost for item in decisions)
        why = " (transformers holds the experts of a block in one tensor, and what each is given is not seen)"
        raise UsageError(
            f"{plan.operator} reaches linear layers and convolutions inside the blocks alone; it does not reach "
            f"{', '.join(lost[:_SHOWN])}{more}{why if stacked else ''}",
            fix=f"take these entries out of the plan, or use the operator {instead}",
        )
    return {layer: Job(item, dtypes[item.tensor]) for item in decisions if (layer := places[item.tensor]) is not None}


@dataclass
class BlockWork(ABC):
    """A `walk.Visitor` with a journal: a block that is finished is there at once."""

    jobs: Mapping[str, Job]
    journal: Journal

    @property
    @abstractmethod
    def need(self) -> Need:
        """What is to be known of the inputs of each layer."""

    @abstractmethod
    def change(
        self, module: nn.Module, job: Job, found: Activations | None, notes: list[str]
    ) -> dict[str, torch.Tensor]:
        """Change a layer in place; what the journal is to keep of it. `found` is None where no input reached it."""

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        mine = {name: module for name, module in block.layers().items() if name in self.jobs}
        if block.name not in self.journal.finished:
            return dict.fromkeys(mine, self.need)
        for name, module in mine.items():
            found = self.journal.read(self.jobs[name].decision.tensor)
            if found is not None:
                _put(module, found)
        return {}

    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        kept: dict[str, torch.Tensor] = {}
        notes: list[str] = []
        for name, module in block.layers().items():
            job = self.jobs.get(name)
            if job is None:
                continue
            try:
                kept |= self.change(module, job, found.get(name), notes)
            except TailwiseError as error:
                raise type(error)(error.what, where=job.decision.tensor, fix=error.fix) from error
        self.journal.keep(block.name, block.index, kept, notes)


def stored_in(module: nn.Module, matrices: list[torch.Tensor], dtype: torch.dtype) -> torch.Tensor:
    """Put matrices, one a group, into a layer, rounded as they will be stored; the stored tensor.

    The blocks after see the model that is written.
    """
    stored = stored_from(module, torch.stack(matrices)).to(dtype)
    _put(module, stored)
    return stored


def _put(module: nn.Module, stored: torch.Tensor) -> None:
    weight = weight_of(module)
    weight.data.copy_(stored.to(weight.device, weight.dtype))
