"""Models that get smaller: cut by heads, neurons and blocks, or stored in factors. From a plan to what is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.writer import Change, OutputLayout, write_checkpoint
from tailwise.compression.operators.registered import OPERATORS
from tailwise.compression.plans.combined import how_of
from tailwise.compression.plans.plan import Plan
from tailwise.compression.shrinking.factored import factored, jobs_in_factors
from tailwise.compression.shrinking.remade import Made, Remade, laid_out
from tailwise.compression.shrinking.structured import (
    Origin,
    Surgery,
    Widths,
    choose_by_magnitude,
    fits,
    origin_of,
    planned_surgery,
)
from tailwise.compression.shrinking.structured_groups import ChannelGroup
from tailwise.compression.shrinking.structured_scores import contributions, kept_units
from tailwise.compression.shrinking.structured_written import made
from tailwise.compression.treating.applied import Reached
from tailwise.compression.treating.block_work import BlockWork, jobs_of
from tailwise.compression.treating.journal import Journal
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of
from tailwise.models.activations import Activations, Need
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.hosts import Host, _empty, architecture_of
from tailwise.models.walking.shapes import PRUNED_FILE, Shapes, reshape
from tailwise.models.walking.statistics import weight_of
from tailwise.models.walking.stored_names import separated
from tailwise.models.walking.walk import walk_blocks

Step = Callable[[int, int], None]


@dataclass(frozen=True)
class ShrinkSource:
    """What is read."""

    plan: Plan
    host: Host
    checkpoint: Checkpoint
    layout: OutputLayout


@dataclass(frozen=True)
class ShrinkWork:
    """A model to be made smaller: everything that can be wrong with the plan has been told."""

    source: ShrinkSource
    origin: Origin
    surgery: Surgery | None  # None: factors

    def made(self, inputs: Mapping[str, torch.Tensor] | None, journal: Journal, batch: int, step: Step) -> Made:
        """Decide what stays; with `inputs` block by block into the journal."""
        if self.surgery is None:
            return self._factored(inputs, journal, batch, step)
        if inputs is None:
            choose_by_magnitude(self.surgery)
        elif any(self.surgery.counts):
            choose_by_contribution(self.surgery, self.source.host, inputs, journal, (batch, step))
        return made(self.surgery)

    def _factored(
        self, inputs: Mapping[str, torch.Tensor] | None, journal: Journal, batch: int, step: Step
    ) -> Made:  # fmt: skip
        plan, host = self.source.plan, self.source.host
        change: Change = lambda name: None  # noqa: E731, ARG005
        if inputs is not None:
            # Products are kept in float32: rounded ones would no longer have the rank of the factors.
            how = how_of(plan, text=True)
            jobs = jobs_of(plan, host, dict.fromkeys((decision.tensor for decision in plan), torch.float32), how)
            if {job.decision.tensor for job in jobs.values()} - journal.tensors:
                walk_blocks(host.home, inputs, BlockWork(jobs, journal, how), batch=batch, progress=step)
            change = journal.read
        return factored(plan, self.origin, change)


def work_of(source: ShrinkSource, widths: Widths) -> ShrinkWork:
    """`UsageError` where the model cannot be made smaller as planned: before any weight is read."""
    origin = origin_of(source.host, source.checkpoint, source.layout)
    surgery = planned_surgery(source.plan, origin, widths) if OPERATORS[source.plan.operator].work is None else None
    if surgery is None:
        jobs_in_factors(source.plan, origin)
    return ShrinkWork(source, origin, surgery)


def write_smaller(work: ShrinkWork, made: Made, folder: Path, step: Step) -> tuple[str, ...]:
    """Write the weights, their index, the changed config, and what it cannot say; notes."""
    origin = work.origin
    view, layout = Remade(origin.checkpoint, made.entries), laid_out(origin.layout, made.entries)
    total = len(made.entries)
    done = iter(range(1, total + 1))

    def counted(_: str) -> None:
        step(next(done), total)

    notes = write_checkpoint(layout, view, folder, counted)
    if made.config:
        path = folder / "config.json"
        config = _said(json_of(path.read_text(encoding="utf-8")), made.config, origin.config)
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    if made.shapes is not None:
        (folder / PRUNED_FILE).write_text(made.shapes.to_text(), encoding="utf-8")
    return (*made.notes, *notes)


def _said(before: Mapping[str, object], changes: Mapping[str, object], config: Any) -> dict[str, object]:
    """The config as it is written: a field that the file has under another name of the family changes there too."""
    other = getattr(config, "attribute_map", None) or {}
    return {
        **before,
        **changes,
        **{name: changes[own] for name, own in other.items() if name in before and own in changes},
    }


def reached_in(plan: Plan, made: Made, folder: Path) -> tuple[Reached, ...]:
    """What the files hold. `UnreadableError` where the model that they describe would not load from them."""
    architecture, config = architecture_of(str(folder))
    model = _empty(architecture, config, torch.float32)
    with open_checkpoint(folder) as written:
        names = separated(model, written)
        reshape(model, Shapes.read(folder) or Shapes())
        whole = all(written.tensors[e.spec.name].shape == e.spec.shape for e in made.entries)
        if not whole or not fits(model, written, names):
            fix = "this is an error of tailwise: report it with the plan"
            raise UnreadableError("does not hold the tensors of the model that it describes", where=folder, fix=fix)
    return tuple(
        Reached(d.tensor, d.n_params, d.sparsity or 0.0, 1.0 - left / d.n_params, d.pattern, rank)
        for d in plan
        for left, rank in [made.reached.get(d.tensor, (d.n_params, None))]
    )


def choose_by_contribution(
    surgery: Surgery,
    host: Host,
    inputs: Mapping[str, torch.Tensor],
    journal: Journal,
    how: tuple[int, Callable[[int, int], None]],
) -> None:
    """Fill `surgery.kept`. `how` is the number of windows at once, and what is told of each block that is done."""
    batch, progress = how
    walk_blocks(host.home, inputs, _Choosing(surgery, journal), batch=batch, progress=progress)


@dataclass
class _Choosing:
    surgery: Surgery
    journal: Journal

    def needs(self, block: Block) -> Mapping[str, Need]:
        """See `Visitor`. A block that goes, or that an earlier run has finished, is not looked at again."""
        if block.name in self.surgery.dropped:
            block.module.forward = _pass_on
            return {}
        groups = self._groups(block)
        if block.name in self.journal.finished:
            for group, _ in groups:
                units = self.journal.read(group.name)
                if units is not None:
                    self._keep(block, group, units)
            return {}
        return {group.reader.layer: "norms" for group, removed in groups if removed}

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        layers, chosen = block.layers(), {}
        for group, removed in self._groups(block):
            if not removed:
                continue
            seen = activations.get(group.reader.layer)
            if seen is None or seen.norms is None:
                raise UsageError("no calibration text reached it", where=group.name, fix="give other text")

            def matrix(layer: str) -> torch.Tensor:
                module = layers[layer]
                weight = weight_of(module).detach()
                return weight.T if type(module).__name__ == "Conv1D" else weight

            units = kept_units(contributions(group, matrix, seen.norms[0]), removed)
            chosen[group.name] = units
            self._keep(block, group, units)
        self.journal.keep(block.name, block.index, chosen, [])

    def _groups(self, block: Block) -> list[tuple[ChannelGroup, int]]:
        both = zip(self.surgery.groups, self.surgery.counts, strict=True)
        return [(group, removed) for group, removed in both if group.reader.layer.startswith(f"{block.name}.")]

    def _keep(self, block: Block, group: ChannelGroup, units: torch.Tensor) -> None:
        """Remember, and let the blocks after see the model without the others: what is not read is not there."""
        self.surgery.kept[group.name] = units
        module = block.layers()[group.reader.layer]
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[units] = False
        columns = group.reader.index[gone].flatten()
        weight = weight_of(module).data
        weight.index_fill_(int(type(module).__name__ != "Conv1D"), columns.to(weight.device), 0.0)


def _pass_on(state: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return state
