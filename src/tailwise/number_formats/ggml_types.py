"""llama.cpp's types whose scales are searched for: k-quants in blocks of 256, and tables of values (iq4).

ggml itself rounds them, with or without importances of the columns; the gguf package decodes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.core.errors import UsageError
from tailwise.number_formats.elements import Integer
from tailwise.number_formats.ggml_blocks import BLOCK, too_large
from tailwise.number_formats.ggml_library import needed_library, told_importances
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import (
    NumberFormat,
    Quantized,
    Reach,
    check_block,
    nonzeros,
    not_finite,
)

if TYPE_CHECKING:
    import torch


#: Above it float16 does not hold the scale of a block of every type, and ggml's sums of squares say nothing.
_LARGEST = 2.0**20


@dataclass(frozen=True, eq=False)
class StoredBlocks(ValueGrid):
    """Blocks as llama.cpp stores them, in `scales`: uint8, (rows, bytes of a row). Every entry has one value."""

    type_id: int = 0

    @classmethod
    def of(cls, blocks: torch.Tensor, type_id: int) -> StoredBlocks:
        """Around the bytes alone: scales lie among codes there."""
        return cls(Integer(8), blocks, blocks, type_id=type_id)

    def decoded(self) -> torch.Tensor:
        """(rows, cols) float32."""
        import numpy as np
        import torch
        from gguf import GGMLQuantizationType
        from gguf.quants import dequantize

        with np.errstate(all="ignore"):
            found = dequantize(self.scales.cpu().numpy(), GGMLQuantizationType(self.type_id))
        return torch.from_numpy(np.require(found, np.float32, ["C", "W"]))

    def round(self, columns: torch.Tensor, start: int = 0) -> torch.Tensor:
        """The stored values of these columns."""
        return self.decoded()[:, start : start + columns.shape[1]].to(columns.device)


@dataclass(frozen=True)
class GgmlFormat(NumberFormat):
    """A type of llama.cpp that ggml rounds to; see `fitting` for rows that its blocks do not divide."""

    type_id: int  # of ggml's enumeration
    low_bits: float  # of a code
    block: int  # entries
    block_bytes: int
    otherwise: NumberFormat  # what llama.cpp takes in its place
    plain: NumberFormat  # what it takes where the blocks of that do not divide a row either

    @property
    def element_bits(self) -> float:
        """Bits of a code."""
        return self.low_bits

    def fitting(self, cols: int) -> NumberFormat:
        """The type that llama.cpp stores rows of so many entries in: itself where its blocks divide them.

        As `tensor_type_fallback` of llama.cpp's quantizer has it.
        """
        if cols % self.block == 0:
            return self
        return self.otherwise.fitting(cols) if cols % BLOCK == 0 else self.plain

    def bits_per_weight(self, rows: int, cols: int) -> float:
        """Whole blocks; those of the type in its place where there is one."""
        chosen = self.fitting(cols)
        return 8 * self.block_bytes / self.block if chosen is self else chosen.bits_per_weight(rows, cols)

    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:
        """As `weighted`, every column as important as the others."""
        return self.weighted(block, None, reach)

    def weighted(self, block: torch.Tensor, importances: torch.Tensor | None, reach: Reach | None = None) -> Quantized:
        """Rounded by ggml, (rows, cols); `importances` (cols,) are mean squared inputs, None for none.

        `UsageError` where no library of ggml is installed, or entries are not finite or too large for float16 scales.
        """
        import torch

        check_block(block)
        chosen = self.fitting(block.shape[1])
        if not isinstance(chosen, GgmlFormat):
            return chosen.quantize(block, reach)
        if chosen is not self:
            return chosen.weighted(block, importances, reach)
        if not torch.isfinite(block).all():
            raise not_finite()
        if float(block.abs().max()) > _LARGEST:
            raise too_large(self.name)
        row_bytes = block.shape[1] // self.block * self.block_bytes
        blocks = needed_library(self.name).rounded(block, self.type_id, row_bytes, told_importances(importances))
        grid = StoredBlocks.of(blocks, self.type_id)
        values = grid.decoded().to(block.device)
        return Quantized(values, 0, nonzeros((block != 0) & (values == 0)), grid)

    def grid(self, block: torch.Tensor, reach: Reach | None = None) -> ValueGrid:  # noqa: ARG002 - see NumberFormat
        """Raises `UsageError`: ggml chooses codes and scales of a block together."""
        raise UsageError(
            f"{self.name} is rounded in whole blocks, whose scales cannot be fixed before the entries",
            fix="plan with --operator imatrix or rtn, or take q4_0, q5_0, q5_1 or q8_0",
        )
