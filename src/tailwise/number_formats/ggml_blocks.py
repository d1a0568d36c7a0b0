"""llama.cpp's blocks of 32: an element, a float16 step, and for some the float16 value of a code of zero.

Codes are found with the step before it is rounded to float16, as the gguf package does it, whose arithmetic is followed
bit for bit. `ValueGrid.round` rounds to the nearest value of the stored step.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.core.errors import UsageError
from tailwise.number_formats.ggml_library import needed_library, told_importances
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import Quantized, Reach, check_block, chunks, nonzeros, not_finite
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import ScaleRule, Scales

if TYPE_CHECKING:
    import torch

BLOCK = 32


class BlockRule(ScaleRule):
    """How a block of 32 gets its step, and its low where it has one."""

    @abstractmethod
    def of(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Steps and lows of (…, entries), float32 before they are rounded, each (…, 1)."""

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """The steps of blocks of two entries."""
        import torch

        stored = self.of(torch.stack([low, high], dim=-1))[0].squeeze(-1).to(torch.float16)
        return Scales(stored, stored.float())


@dataclass(frozen=True)
class HalfSigned(BlockRule):
    """The entry of the largest magnitude, sign and all, over −2^(b−1), in float16: llama.cpp's `q4_0`, `q5_0`."""

    element_bits: int
    bits: int = 16

    def of(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The first of entries that are as large."""
        largest = entries.abs().argmax(-1, keepdim=True)
        return entries.gather(-1, largest).div_(-(2.0 ** (self.element_bits - 1))), None


@dataclass(frozen=True)
class HalfLargest(BlockRule):
    """amax / 127 in float16; halves are rounded away from zero: llama.cpp's `q8_0`."""

    bits: int = 16

    def of(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The code −128 is not used."""
        return entries.abs().amax(-1, keepdim=True).div_(127.0), None


@dataclass(frozen=True)
class HalfBetween(BlockRule):
    """(high − low)/(2^b − 1) and low, both in float16: llama.cpp's `q4_1`, `q5_1`. Zero need not be a value."""

    element_bits: int
    bits: int = 32
    signed = True

    def of(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """The ends of a block are values, up to their rounding."""
        low = entries.amin(-1, keepdim=True)
        return (entries.amax(-1, keepdim=True) - low).div_(2.0**self.element_bits - 1), low


@dataclass(frozen=True)
class BlockFormat(ScaledFormat):
    """A type of llama.cpp: value = code · step, or code · step + low."""

    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:  # noqa: ARG002
        """Nothing is out of reach: the ends of a block are values, up to the rounding of its step."""
        import torch

        check_block(block)
        values = torch.empty(block.shape, dtype=torch.float32, device=block.device)
        grids, underflow = [], 0
        for part, chunk in zip(chunks(block), chunks(values), strict=True):
            entries = _blocks(part)
            grid, steps, lows = self._scales(entries)
            codes = self._codes(entries, steps, lows)
            chunk.copy_((codes * grid.steps[..., None]).flatten(1)[:, : chunk.shape[1]])
            if grid.lows is not None:
                chunk.add_(grid.lows.float().repeat_interleave(BLOCK, 1)[:, : chunk.shape[1]])
            underflow += nonzeros((part != 0) & (chunk == 0))
            grids.append(grid)
        return Quantized(values, 0, underflow, _stacked(grids))

    def grid(self, block: torch.Tensor, reach: Reach | None = None) -> ValueGrid:  # noqa: ARG002
        """The scales that `quantize` would choose for the block."""
        check_block(block)
        return _stacked([self._scales(_blocks(part))[0] for part in chunks(block)])

    def weighted(self, block: torch.Tensor, importances: torch.Tensor | None, reach: Reach | None = None) -> Quantized:
        """Steps and codes by ggml, which weighs the errors of columns by `importances` (cols,); q8_0 does not look.

        As `quantize` without importances. Rows are whole blocks, else they are filled up by `quantize`.
        """
        import torch

        told = None if importances is None else told_importances(importances)
        if told is None or isinstance(self.rule, HalfLargest) or block.shape[1] % BLOCK:
            return self.quantize(block, reach)
        check_block(block)
        if not torch.isfinite(block).all():
            raise not_finite()
        head = self.rule.bits // 8
        row_bytes = block.shape[1] // BLOCK * (head + BLOCK * self.element.bits // 8)
        blocks = needed_library(self.name).rounded(block, self.type_id, row_bytes, told)
        grid, values = self._stored(blocks.reshape(len(block), -1, row_bytes * BLOCK // block.shape[1]))
        return Quantized(values.to(block.device), 0, nonzeros((block != 0).cpu() & (values == 0)), grid)

    def _stored(self, blocks: torch.Tensor) -> tuple[ValueGrid, torch.Tensor]:
        """Scales and values of (rows, groups, bytes of a block): scale, low, fifth bits, entry i beside i + 16."""
        import torch

        ends = blocks[..., : self.rule.bits // 8].contiguous().view(torch.float16)
        rest = blocks[..., self.rule.bits // 8 :].to(torch.int64)
        low = torch.cat([rest[..., -BLOCK // 2 :] & 15, rest[..., -BLOCK // 2 :] >> 4], dim=-1)
        if self.element.bits == 5:
            fifth = (rest[..., :4, None] >> torch.arange(8)) & 1
            low += 16 * fifth.flatten(2)
        if not torch.isfinite(ends).all():
            raise too_large(self.name)
        steps = ends[..., 0].float()
        lows = ends[..., 1].contiguous() if self.rule.signed else None
        codes = low.float() + self.element.limits[0]
        values = (codes * steps[..., None]).add_(0.0 if lows is None else lows.float()[..., None]).flatten(1)
        return ValueGrid(self.element, ends[..., 0].contiguous(), steps, None, None, BLOCK, lows), values

    @property
    def type_id(self) -> int:
        """Its number in ggml's enumeration."""
        return {"q4_0": 2, "q4_1": 3, "q5_0": 6, "q5_1": 7, "q8_0": 8}[self.name]

    def _scales(self, entries: torch.Tensor) -> tuple[ValueGrid, torch.Tensor, torch.Tensor | None]:
        """Scales of (rows, groups, 32), and steps and lows before they are rounded, (rows, groups, 1)."""
        import torch

        assert isinstance(self.rule, BlockRule)  # noqa: S101 - made so
        steps, lows = self.rule.of(entries)
        stored = steps.squeeze(-1).to(torch.float16)
        low = None if lows is None else lows.squeeze(-1).to(torch.float16)
        if not (torch.isfinite(stored).all() and (low is None or torch.isfinite(low).all())):
            raise not_finite() if not torch.isfinite(entries).all() else too_large(self.name)
        return ValueGrid(self.element, stored, stored.float(), None, None, BLOCK, low), steps, lows

    def _codes(self, entries: torch.Tensor, steps: torch.Tensor, lows: torch.Tensor | None) -> torch.Tensor:
        """Codes as float32; entries are multiplied by the reciprocal, and halves go as the gguf package has them."""
        import torch

        scaled = (entries if lows is None else entries - lows) * torch.where(steps == 0, 0.0, 1.0 / steps)
        low, high = self.element.limits
        if isinstance(self.rule, HalfLargest):  # halves away from zero
            whole = scaled.abs().floor()
            codes = (whole + (2 * (scaled.abs() - whole)).floor()).mul_(scaled.sign())
            return codes.add_(0.0)  # integers know no −0
        return (scaled + (0.5 - low)).trunc_().clamp_(0, high - low).add_(low)


def too_large(name: str) -> UsageError:
    """The error for entries that no float16 scale reaches."""
    return UsageError(f"its largest entries are too large for the float16 scales of {name}", fix="take q8_0, or bf16")


def _blocks(part: torch.Tensor) -> torch.Tensor:
    """Rows as (rows, groups, 32) in float32, the last group filled with zeros."""
    import torch

    cols = part.shape[1]
    return torch.nn.functional.pad(part.float(), (0, -cols % BLOCK)).reshape(len(part), -1, BLOCK)


def _stacked(grids: list[ValueGrid]) -> ValueGrid:
    import torch

    first = grids[0]
    lows = [grid.lows for grid in grids if grid.lows is not None]
    return ValueGrid(
        first.element,
        torch.cat([grid.scales for grid in grids]),
        torch.cat([grid.steps for grid in grids]),
        None,
        None,
        BLOCK,
        torch.cat(lows) if lows else None,
    )
