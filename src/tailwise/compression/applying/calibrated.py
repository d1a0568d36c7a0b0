"""Operators that look at the inputs of each layer: block by block, each block's inputs from the pruned ones before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.compression.applying.block_work import BlockWork, Job, jobs_for, stored_in
from tailwise.compression.applying.data_free import amount_of, does_nothing
from tailwise.compression.operators.operator import Activations, Need, Operator
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import Plan
from tailwise.compression.walking.hosts import Host
from tailwise.compression.walking.statistics import matrices_of, of_group
from tailwise.compression.walking.walk import walk_blocks

#: The operators that calibration turns those of the plan into.
WITH_DATA = {"low_rank": "low_rank_whitened"}


def jobs_of(plan: Plan, host: Host, dtypes: Mapping[str, torch.dtype]) -> dict[str, Job]:
    """Layer → what is to be done. `UsageError` where an entry of the plan is no layer of a block."""
    wanted = [decision for decision in plan if not does_nothing(decision)]
    return jobs_for(plan, wanted, host, dtypes, instead="magnitude")


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
class Pruning(BlockWork):
    """Prunes the layers of each block."""

    pruner: Operator

    @property
    def need(self) -> Need:
        """See `BlockWork`."""
        return self.pruner.needs

    def change(
        self, module: nn.Module, job: Job, found: Activations | None, notes: list[str]
    ) -> dict[str, torch.Tensor]:
        """See `BlockWork`."""
        pruner = self.pruner
        if found is None:  # an expert that no token was sent to
            pruner = OPERATORS["low_rank" if job.decision.rank is not None else "magnitude"]
            notes.append(f"{job.decision.tensor}: no input reached it, so it was pruned by {pruner.name}")
        amount = amount_of(job.decision)
        done = [
            pruner(W, amount, None if found is None else of_group(found, group)).weight
            for group, W in enumerate(matrices_of(module).detach())
        ]
        return {job.decision.tensor: stored_in(module, done, job.dtype)}
