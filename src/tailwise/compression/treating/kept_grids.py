"""The scales that an operator chose, kept in a journal beside the values: packing and reading back need them."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from tailwise.compression.operators.operator import OperatorResult
from tailwise.compression.plans.decision import Decision
from tailwise.compression.treating.journal import Journal
from tailwise.number_formats.ggml_types import GgmlFormat, StoredBlocks
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.scaled import ScaledFormat

#: Of a grid, what a packed checkpoint stores and what rounding again takes.
_PARTS = ("scales", "steps", "zeros", "lows")


def kept_grids(tensor: str, done: Sequence[OperatorResult]) -> dict[str, torch.Tensor]:
    """Scales and zero points of each matrix, by names that no tensor has; nothing where there are none."""
    grids: dict[str, torch.Tensor] = {}
    for index, item in enumerate(done):
        if item.grid is not None:
            parts = {name: getattr(item.grid, name) for name in _PARTS}
            if parts["scales"] is parts["steps"]:  # one tensor cannot be stored under two names
                del parts["scales"]
            grids |= {f"{tensor}#{index}.{name}": value for name, value in parts.items() if value is not None}
            if item.grid.tensor_scale is not None:
                grids[f"{tensor}#{index}.tensor_scale"] = torch.tensor(item.grid.tensor_scale, dtype=torch.float64)
    return grids


def grids_in(journal: Journal, decision: Decision) -> list[ValueGrid] | None:
    """The scales that were chosen for each matrix of a tensor; None where its treatment has none."""
    cast = decision.treatment.cast
    chosen = None if cast is None else cast.fitted(decision.shape)
    if not isinstance(chosen, ScaledFormat | GgmlFormat):
        return None
    grids: list[ValueGrid] = []
    while (steps := journal.read(f"{decision.tensor}#{len(grids)}.steps")) is not None:
        here = f"{decision.tensor}#{len(grids)}"
        scales, whole = journal.read(f"{here}.scales"), journal.read(f"{here}.tensor_scale")
        zeros, lows = journal.read(f"{here}.zeros"), journal.read(f"{here}.lows")
        if isinstance(chosen, GgmlFormat):
            grids.append(StoredBlocks.of(steps if scales is None else scales, chosen.type_id))
            continue
        scale = None if whole is None else float(whole)
        grids.append(
            ValueGrid(chosen.element, steps if scales is None else scales, steps, zeros, scale, chosen.group_size, lows)
        )
    return grids
