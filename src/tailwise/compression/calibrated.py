"""Operators that look at the inputs of each layer: block by block, each block's inputs from the pruned ones before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.compression.data_free import amount_of, does_nothing
from tailwise.compression.hosts import Host, layer_of
from tailwise.compression.journal import Journal
from tailwise.compression.plan import Decision, Plan
from tailwise.compression.prune.pruner import PRUNERS, Activations, Need, Pruner
from tailwise.compression.statistics import matrices_of, of_group, stored_from, weight_of
from tailwise.compression.walk import Block, blocks_of, walk_blocks
from tailwise.errors import TailwiseError, UsageError

#: The operators that calibration turns those of the plan into.
WITH_DATA = {"low_rank": "low_rank_whitened"}
_SHOWN = 5


@dataclass(frozen=True)
class Job:
    """One layer to prune."""

    decision: Decision
    dtype: torch.dtype  # as stored


def jobs_of(plan: Plan, host: Host, dtypes: Mapping[str, torch.dtype]) -> dict[str, Job]:
    """Layer → what is to be done. `UsageError` where an entry of the plan is no layer of a block."""
    layers = {name: module for block in blocks_of(host.model) for name, module in block.layers().items()}
    jobs: dict[str, Job] = {}
    lost: list[str] = []
    for decision in plan:
        if does_nothing(decision):
            continue
        layer = layer_of(host.places, decision.tensor, layers)
        if layer is None:
            lost.append(decision.tensor)
        else:
            jobs[layer] = Job(decision, dtypes[decision.tensor])
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise UsageError(
            f"{plan.operator} reaches linear layers and convolutions inside the blocks alone; it does not reach "
            f"{', '.join(lost[:_SHOWN])}{more}",
            fix="take these entries out of the plan, or use the operator magnitude",
        )
    return jobs


def prune_blocks(
    host: Host,
    inputs: Mapping[str, torch.Tensor],
    work: Pruning,
    *,
    batch: int,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Walk through the model; every block that is finished is in the journal at once."""
    walk_blocks(host.home, inputs, work, batch=batch, progress=progress)


@dataclass
class Pruning:
    """What is done at each block: prune its layers, or take what the journal has."""

    jobs: Mapping[str, Job]
    pruner: Pruner
    journal: Journal

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        mine = {name: module for name, module in block.layers().items() if name in self.jobs}
        if block.name not in self.journal.finished:
            return dict.fromkeys(mine, self.pruner.needs)
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
                kept[job.decision.tensor] = self._prune(module, job, found.get(name), notes)
            except TailwiseError as error:
                raise type(error)(error.what, where=job.decision.tensor, fix=error.fix) from error
        self.journal.keep(block.name, block.index, kept, notes)

    def _prune(self, module: nn.Module, job: Job, found: Activations | None, notes: list[str]) -> torch.Tensor:
        pruner = self.pruner
        if found is None:  # an expert that no token was sent to
            pruner = PRUNERS["low_rank" if job.decision.rank is not None else "magnitude"]
            notes.append(f"{job.decision.tensor}: no input reached it, so it was pruned by {pruner.name}")
        amount = amount_of(job.decision)
        done = [
            pruner(W, amount, None if found is None else of_group(found, group)).weight
            for group, W in enumerate(matrices_of(module).detach())
        ]
        # Rounded as it will be stored: the blocks after see the model that is written.
        stored = stored_from(module, torch.stack(done)).to(job.dtype)
        _put(module, stored)
        return stored


def _put(module: nn.Module, stored: torch.Tensor) -> None:
    weight = weight_of(module)
    weight.data.copy_(stored.to(weight.device, weight.dtype))
