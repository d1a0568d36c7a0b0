"""All that the zoo knows of tailwise's reader."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import TailwiseError


@dataclass(frozen=True)
class Seen:
    """One matrix that is measured."""

    name: str
    tensors: tuple[str, ...]
    role: str
    block: int | None
    kind: str
    input_axis: int  # 1 where the columns are the inputs, 0 where the rows are
    numel: int
    matrix: torch.Tensor  # float64, as it is measured; without an entry where it is not read

    @property
    def whole(self) -> str:
        """The module (or expert) that it is a part of; an adapter's change is not a part of its base."""
        return self.name if "#lora" in self.name else self.name.partition("#")[0]

    @property
    def as_map(self) -> torch.Tensor:
        """Outputs × inputs."""
        return self.matrix if self.input_axis == 1 else self.matrix.T


@dataclass(frozen=True)
class View:
    """What the reader makes of one checkpoint."""

    seen: tuple[Seen, ...]
    listed: Mapping[str, str]  # what is not measured → status and reason
    stored: Mapping[str, int]  # every stored tensor → its elements
    shared: frozenset[str]  # stored tensors that are another one's


def read(what: Any, only: str = "", **options: Any) -> View:
    """Every matrix of a path, a module or a mapping, in float64, however small; what is not opened at all is listed.

    `only`: a pattern of the names whose values are read.
    """
    try:
        opened = open_checkpoint(what, **options)
    except TailwiseError as error:
        return View((), {str(what): f"UNSUPPORTED: {error}"}, {}, frozenset())
    with opened as checkpoint:
        sources, rest = group(checkpoint, conv="flatten", min_evals=1)
        seen = []
        for source in sources:
            values = torch.empty(0, 0)
            if re.search(only, source.name):
                (matrix,) = load(source, checkpoint)
                values = torch.cat(list(matrix.row_blocks(1 << 30))).to(torch.float64)
            seen.append(
                Seen(source.name, source.tensors, source.role, source.block, source.kind, source.input_axis,
                     source.n_params, values)
            )  # fmt: skip
        return View(
            tuple(seen),
            {item.name: f"{item.status}: {item.reason}" for item in rest},
            {name: spec.numel for name, spec in checkpoint.tensors.items()},
            frozenset(item.name for item in rest if item.status == "SHARED"),
        )
