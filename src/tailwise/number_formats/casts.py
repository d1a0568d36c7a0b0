"""Plain casts: torch's own floating-point types, without scales."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.number_formats.elements import Float8
from tailwise.number_formats.number_format import (
    NumberFormat,
    Quantized,
    Reach,
    check_block,
    chunks,
    nonzeros,
    not_finite,
)

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class PlainCast(NumberFormat):
    """Every entry is cast, to nearest, ties to even; what is too large becomes infinite, as torch has it."""

    dtype: str  # torch's name of the type
    bits: int

    @property
    def element_bits(self) -> float:
        """Bits of the type."""
        return self.bits

    def bits_per_weight(self, rows: int, cols: int) -> float:  # noqa: ARG002
        """Nothing is stored beside the entries."""
        return self.bits

    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:  # noqa: ARG002
        """The values share memory with the block where the cast changes nothing."""
        import torch

        check_block(block)
        low, high = _check_finite(block)
        dtype = getattr(torch, self.dtype)
        beyond = max(-low, high) > torch.finfo(dtype).max
        if self.bits == 64 or block.dtype == dtype:
            return Quantized(block.to(torch.float64 if self.bits == 64 else torch.float32), 0, 0)
        values = torch.empty(block.shape, dtype=torch.float32, device=block.device)
        overflow = underflow = 0
        for part, chunk in zip(chunks(block), chunks(values), strict=True):
            chunk.copy_(part.to(dtype))
            overflow += nonzeros(chunk.isinf()) if beyond else 0
            underflow += _lost(part, chunk)
        return Quantized(values, overflow, underflow)


@dataclass(frozen=True)
class Float8Cast(NumberFormat):
    """Every entry is cast to an 8-bit float without a scale; what is too large is clipped to the largest number."""

    element: Float8

    @property
    def element_bits(self) -> float:
        """Eight."""
        return self.element.bits

    def bits_per_weight(self, rows: int, cols: int) -> float:  # noqa: ARG002
        """Nothing is stored beside the entries."""
        return self.element.bits

    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:  # noqa: ARG002
        """Clipped by more than half a step counts as overflow."""
        import torch

        check_block(block)
        low, high = _check_finite(block)
        limit = self.element.limits[1] + self.element.slack
        values = torch.empty(block.shape, dtype=torch.float32, device=block.device)
        overflow = underflow = 0
        for part, chunk in zip(chunks(block), chunks(values), strict=True):
            chunk.copy_(part)
            if max(-low, high) > limit:
                overflow += nonzeros(chunk.abs() > limit)
            underflow += _lost(part, self.element.round_(chunk))
        return Quantized(values, overflow, underflow)


def _check_finite(block: torch.Tensor) -> tuple[float, float]:
    """The smallest and the largest entry; a `UsageError` where an entry is NaN or infinite."""
    whole = Reach.of([block])
    if not (abs(whole.low) < float("inf") and abs(whole.high) < float("inf")):
        raise not_finite()
    return whole.low, whole.high


def _lost(before: torch.Tensor, after: torch.Tensor) -> int:
    """Entries that became zero."""
    return nonzeros(before) - nonzeros(after)
