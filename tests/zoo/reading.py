"""All that the zoo knows of tailwise's reader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from tailwise.checkpoints.matrices import group, load
from tailwise.checkpoints.open import open_checkpoint
from tailwise.errors import TailwiseError


@dataclass(frozen=True)
class Seen:
    """One matrix that is measured."""

    name: str
    tensors: tuple[str, ...]
    role: str
    block: int | None
    kind: str
    input_axis: int | None  # 1: columns are inputs; None: the reader does not say
    matrix: torch.Tensor  # float64, as it is measured

    @property
    def whole(self) -> str:
        """The module (or expert) that it is a part of; an adapter's change is not a part of its base."""
        return self.name if "#lora" in self.name else self.name.partition("#")[0]

    def as_map(self, inputs: int) -> torch.Tensor:
        """Outputs × inputs; where the reader does not say how it lies, the way that fits."""
        axis = self.input_axis
        if axis is None:
            axis = 1 if self.matrix.shape[1] == inputs else 0
        return self.matrix if axis == 1 else self.matrix.T


@dataclass(frozen=True)
class View:
    """What the reader makes of one checkpoint."""

    seen: tuple[Seen, ...]
    listed: Mapping[str, str]  # what is not measured → status and reason
    stored: Mapping[str, int]  # every stored tensor → its elements
    shared: frozenset[str]  # stored tensors that are another one's


def read(what: Any, **options: Any) -> View:
    """Every matrix of a path, a module or a mapping, in float64, however small; what is not opened at all is listed."""
    try:
        opened = open_checkpoint(what, **options)
    except TailwiseError as error:
        return View((), {str(what): f"UNSUPPORTED: {error}"}, {}, frozenset())
    with opened as checkpoint:
        sources, rest = group(checkpoint, conv="flatten", min_evals=1)
        seen = []
        for source in sources:
            (matrix,) = load(source, checkpoint)
            seen.append(
                Seen(source.name, source.tensors, source.role, source.block, source.kind,
                     getattr(source, "input_axis", None),
                     torch.cat(list(matrix.row_blocks(1 << 30))).to(torch.float64))
            )  # fmt: skip
        return View(
            tuple(seen),
            {item.name: f"{item.status}: {item.reason}" for item in rest},
            {name: spec.numel for name, spec in checkpoint.tensors.items()},
            frozenset(item.name for item in rest if item.status == "SHARED"),
        )
