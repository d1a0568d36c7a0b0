"""GPTQ on a model: block by block, each block's inputs from the quantized ones before."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.compression.calibrated import Job, _put
from tailwise.compression.hosts import Host, layer_of
from tailwise.compression.journal import Journal
from tailwise.compression.plan import Plan
from tailwise.compression.prune.pruner import Activations, Need
from tailwise.compression.quantize.quantizer import QUANTIZERS, Quantizer, Rounded, Target
from tailwise.compression.statistics import matrices_of, of_group, stored_from
from tailwise.compression.walk import Block, blocks_of
from tailwise.errors import TailwiseError, UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.grid import Grid
from tailwise.number_formats.scaled import ScaledFormat

_SHOWN = 5


def jobs_of(plan: Plan, host: Host, dtypes: Mapping[str, torch.dtype]) -> dict[str, Job]:
    """Layer → what is to be done. `UsageError` where an entry of the plan is no layer of a block."""
    layers = {name for block in blocks_of(host.model) for name in block.layers()}
    places = {decision.tensor: layer_of(host.places, decision.tensor, layers) for decision in plan}
    lost = [tensor for tensor, layer in places.items() if layer is None]
    if lost:
        more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
        raise UsageError(
            f"{plan.operator} reaches linear layers and convolutions inside the blocks alone; it does not reach "
            f"{', '.join(lost[:_SHOWN])}{more}",
            fix="take these entries out of the plan, or use the operator rtn",
        )
    return {layer: Job(d, dtypes[d.tensor]) for d in plan if (layer := places[d.tensor]) is not None}


@dataclass
class Quantizing:
    """What is done at each block: round its layers, or take what the journal has. See `walk.Visitor`."""

    jobs: Mapping[str, Job]
    quantizer: Quantizer
    journal: Journal
    act_order: bool = False

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`."""
        mine = {name: module for name, module in block.layers().items() if name in self.jobs}
        if block.name not in self.journal.finished:
            return dict.fromkeys(mine, self.quantizer.needs)
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
                kept |= self._quantize(module, job, found.get(name), notes)
            except TailwiseError as error:
                raise type(error)(error.what, where=job.decision.tensor, fix=error.fix) from error
        self.journal.keep(block.name, block.index, kept, notes)

    def _quantize(
        self, module: nn.Module, job: Job, found: Activations | None, notes: list[str]
    ) -> dict[str, torch.Tensor]:
        quantizer, tensor = self.quantizer, job.decision.tensor
        if found is None:  # an expert that no token was sent to
            quantizer = QUANTIZERS["rtn"]
            notes.append(f"{tensor}: no input reached it, so it was rounded to nearest")
        target = Target(parse_format(job.decision.format or ""), self.act_order)
        done = [
            quantizer(W.to(job.dtype), target, None if found is None else of_group(found, group))
            for group, W in enumerate(matrices_of(module).detach())
        ]
        # Rounded as it will be stored: the blocks after see the model that is written.
        stored = stored_from(module, torch.stack([item.weight for item in done])).to(job.dtype)
        _put(module, stored)
        return {tensor: stored, **_kept_grids(tensor, done)}


def _kept_grids(tensor: str, done: list[Rounded]) -> dict[str, torch.Tensor]:
    """Scales and zero points of each matrix, by names that no tensor has."""
    found: dict[str, torch.Tensor] = {}
    for index, item in enumerate(done):
        if item.grid is not None:
            found[f"{tensor}#{index}.steps"] = item.grid.steps
            if item.grid.zeros is not None:
                found[f"{tensor}#{index}.zeros"] = item.grid.zeros
    return found


def grids_in(journal: Journal, tensor: str, name: str) -> list[Grid] | None:
    """The scales that were chosen for each matrix of a tensor; None for a plain cast, which has none."""
    chosen = parse_format(name)
    if not isinstance(chosen, ScaledFormat):
        return None
    found: list[Grid] = []
    while (steps := journal.read(f"{tensor}#{len(found)}.steps")) is not None:
        zeros = journal.read(f"{tensor}#{len(found)}.zeros")
        found.append(Grid(chosen.element, steps, steps, zeros, None, chosen.group_size))
    return found
