"""Which heads and neurons stay, by what each adds to the states: block by block, after the pruned ones before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tailwise.compression.operators.operator import Activations, Need
from tailwise.compression.shrinking.structured import Surgery
from tailwise.compression.shrinking.structured_groups import Group
from tailwise.compression.shrinking.structured_scores import contributions, kept_units
from tailwise.compression.treating.journal import Journal
from tailwise.models.walking.hosts import Host
from tailwise.models.walking.statistics import weight_of
from tailwise.models.walking.walk import Block, walk_blocks
from tailwise.core.errors import UsageError


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
                kept = self.journal.read(group.name)
                if kept is not None:
                    self._keep(block, group, kept)
            return {}
        return {group.reader.layer: "norms" for group, removed in groups if removed}

    def visit(self, block: Block, found: Mapping[str, Activations]) -> None:
        """See `Visitor`."""
        layers, chosen = block.layers(), {}
        for group, removed in self._groups(block):
            if not removed:
                continue
            seen = found.get(group.reader.layer)
            if seen is None or seen.norms is None:
                raise UsageError("no calibration text reached it", where=group.name, fix="give other text")

            def matrix(layer: str) -> torch.Tensor:
                module = layers[layer]
                weight = weight_of(module).detach()
                return weight.T if type(module).__name__ == "Conv1D" else weight

            kept = kept_units(contributions(group, matrix, seen.norms[0]), removed)
            chosen[group.name] = kept
            self._keep(block, group, kept)
        self.journal.keep(block.name, block.index, chosen, [])

    def _groups(self, block: Block) -> list[tuple[Group, int]]:
        both = zip(self.surgery.groups, self.surgery.counts, strict=True)
        return [(group, removed) for group, removed in both if group.reader.layer.startswith(f"{block.name}.")]

    def _keep(self, block: Block, group: Group, kept: torch.Tensor) -> None:
        """Remember, and let the blocks after see the model without the others: what is not read is not there."""
        self.surgery.kept[group.name] = kept
        module = block.layers()[group.reader.layer]
        gone = torch.ones(group.units, dtype=torch.bool)
        gone[kept] = False
        columns = group.reader.index[gone].flatten()
        weight = weight_of(module).data
        weight.index_fill_(int(type(module).__name__ != "Conv1D"), columns.to(weight.device), 0.0)


def _pass_on(state: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
    return state
