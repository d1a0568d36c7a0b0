"""The contract of every number format: a block of rows goes in, what a server would compute with comes out.

Importing this module, and naming a format, needs no torch; rounding does.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import torch

    from tailwise.number_formats.grid import ValueGrid


#: Entries that are worked on at once: 1 MiB in float32, which fits a core's cache.
_CHUNK = 2**18


@dataclass(frozen=True)
class Reach:
    """The smallest and the largest entry of a whole tensor, of which a block may be a part."""

    low: float
    high: float

    @property
    def amax(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    @classmethod
    def of(cls, blocks: Iterable[torch.Tensor]) -> Reach:
        """The reach of a tensor that comes in blocks; (0, 0) where it has no entries."""
        low, high = math.inf, -math.inf
        for block in blocks:
            if block.numel():
                smallest, largest = (float(end) for end in block.aminmax())
                # NaN loses every comparison of min() and max(), so that it could hide.
                low, high = (math.nan, math.nan) if math.isnan(smallest) else (min(low, smallest), max(high, largest))
        return cls(low, high) if low != math.inf else cls(0.0, 0.0)


@dataclass(frozen=True, eq=False)
class Quantized:
    """A block of a matrix after rounding."""

    values: torch.Tensor  # (rows, cols), dequantized: float32, and float64 for fp64
    overflow: int  # entries that the format could not reach: clipped by more than half a step, or infinite now
    underflow: int  # non-zero entries that became zero
    grid: ValueGrid | None = None  # scales and zero points; None for a plain cast

    @property
    def codes(self) -> torch.Tensor | None:
        """The code of every entry, one an element, made at every call: see `Element.codes`; None for a plain cast."""
        return None if self.grid is None else self.grid.codes(self.values)

    @property
    def scales(self) -> torch.Tensor | None:
        """Scales as they are stored, (rows, groups), or (1, 1) for one of a tensor."""
        return None if self.grid is None else self.grid.scales

    @property
    def zeros(self) -> torch.Tensor | None:
        """Zero points as they are stored, in the shape of the scales; None where the format is symmetric."""
        return None if self.grid is None else self.grid.zeros

    @property
    def tensor_scale(self) -> float | None:
        """What the scales of a tensor are divided by; None where there is none."""
        return None if self.grid is None else self.grid.tensor_scale


@dataclass(frozen=True)
class NumberFormat(ABC):
    """How numbers are stored. Frozen, hashable, picklable: it holds no arrays."""

    name: str  # canonical: `parse_format(name)` gives an equal format
    source: str  # whose codec it is

    @property
    @abstractmethod
    def element_bits(self) -> float:
        """Bits of one entry, without its share of scales."""

    @property
    def group_size(self) -> int | None:
        """How many entries along a row share a scale; None where a row, a tensor or nothing does."""
        return None

    def fitting(self, cols: int) -> NumberFormat:  # noqa: ARG002 - most fit any row
        """What rows of so many entries are stored in: itself, but for types that another stands in for."""
        return self

    @abstractmethod
    def bits_per_weight(self, rows: int, cols: int) -> float:
        """Stored bits over entries of a (rows, cols) matrix: scales and zero points count, headers do not."""

    @abstractmethod
    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:
        """Round a block of rows of W, shape (rows, cols), groups along the last axis.

        `reach` is of the whole tensor, and is needed where one scale serves it all and the block is a part of it.
        """

    def grid(self, block: torch.Tensor, reach: Reach | None = None) -> ValueGrid:  # noqa: ARG002
        """The scales that `quantize` would choose for the block, to round columns to later; not for a plain cast."""
        raise UsageError(f"{self.name} has no scales to fix", fix="round with quantize(), which needs none")


def check_block(block: torch.Tensor) -> None:
    """A block is a matrix of floating-point numbers with some entries; anything else is a `UsageError`."""
    if block.ndim != 2 or block.numel() == 0 or not block.is_floating_point() or block.element_size() < 2:
        shape = tuple(block.shape)
        raise UsageError(
            f"cannot quantize an array of shape {shape} and type {block.dtype}",
            fix="give a matrix with entries, in float16, bfloat16, float32 or float64",
        )


def chunks(matrix: torch.Tensor, like: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
    """Views of rows that are small enough to stay in the cache while they are worked on.

    As many rows each as those of `like`, which may be narrower: a last group that is shorter is filled up.
    """
    rows = max(1, _CHUNK // (matrix if like is None else like).shape[1])
    return tuple(matrix[start : start + rows] for start in range(0, matrix.shape[0], rows))


def nonzeros(entries: torch.Tensor) -> int:
    """How many entries are not zero; `torch.count_nonzero` takes ten times as long where zeros are mixed in."""
    import numpy as np
    import torch

    marks = entries.to(torch.bool)
    return int(marks.sum()) if marks.is_cuda else int(np.count_nonzero(marks.numpy()))


def not_finite() -> UsageError:
    """The error for NaN or infinite entries, which no scale fits."""
    return UsageError("cannot quantize NaN or infinite entries", fix="leave this tensor as it is, or repair it first")
