"""GPTQ on a model: block by block, each block's inputs from the quantized ones before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.compression.applying.block_work import BlockWork, Job, jobs_for, stored_in
from tailwise.compression.applying.journal import Journal
from tailwise.compression.operators.operator import Activations, Done, Need, Operator, Target
from tailwise.compression.operators.table import OPERATORS
from tailwise.compression.plans.plan import Plan
from tailwise.compression.walking.hosts import Host
from tailwise.compression.walking.statistics import matrices_of, of_group
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.scaled import ScaledFormat

#: Of a grid, what a packed checkpoint stores and what rounding again takes.
_PARTS = ("scales", "steps", "zeros", "lows")


def jobs_of(plan: Plan, host: Host, dtypes: Mapping[str, torch.dtype]) -> dict[str, Job]:
    """Layer → what is to be done. `UsageError` where an entry of the plan is no layer of a block."""
    return jobs_for(plan, plan.decisions, host, dtypes, instead="rtn")


@dataclass
class Quantizing(BlockWork):
    """Rounds the layers of each block."""

    quantizer: Operator
    act_order: bool = False
    keep_zeros: bool = False

    @property
    def need(self) -> Need:
        """See `BlockWork`."""
        return self.quantizer.needs

    def change(
        self, module: nn.Module, job: Job, found: Activations | None, notes: list[str]
    ) -> dict[str, torch.Tensor]:
        """See `BlockWork`."""
        quantizer, tensor = self.quantizer, job.decision.tensor
        if found is None:  # an expert that no token was sent to
            quantizer = OPERATORS["rtn"]
            notes.append(f"{tensor}: no input reached it, so it was rounded to nearest")
        target = Target(parse_format(job.decision.format or ""), self.act_order, self.keep_zeros)
        done = [
            quantizer(W.to(job.dtype), target, None if found is None else of_group(found, group))
            for group, W in enumerate(matrices_of(module).detach())
        ]
        stored = stored_in(module, [item.weight for item in done], job.dtype)
        return {tensor: stored, **_kept_grids(tensor, done)}


def _kept_grids(tensor: str, done: list[Done]) -> dict[str, torch.Tensor]:
    """Scales and zero points of each matrix, by names that no tensor has."""
    found: dict[str, torch.Tensor] = {}
    for index, item in enumerate(done):
        if item.grid is not None:
            parts = {name: getattr(item.grid, name) for name in _PARTS}
            found |= {f"{tensor}#{index}.{name}": value for name, value in parts.items() if value is not None}
            if item.grid.tensor_scale is not None:
                found[f"{tensor}#{index}.tensor_scale"] = torch.tensor(item.grid.tensor_scale, dtype=torch.float64)
    return found


def grids_in(journal: Journal, tensor: str, name: str) -> list[Grid] | None:
    """The scales that were chosen for each matrix of a tensor; None for a plain cast, which has none."""
    chosen = parse_format(name)
    if not isinstance(chosen, ScaledFormat):
        return None
    found: list[Grid] = []
    while (steps := journal.read(f"{tensor}#{len(found)}.steps")) is not None:
        here = f"{tensor}#{len(found)}"
        scales, whole = journal.read(f"{here}.scales"), journal.read(f"{here}.tensor_scale")
        zeros, lows = journal.read(f"{here}.zeros"), journal.read(f"{here}.lows")
        scale = None if whole is None else float(whole)
        found.append(
            Grid(chosen.element, steps if scales is None else scales, steps, zeros, scale, chosen.group_size, lows)
        )
    return found
