"""Formats with scales: an element, a rule for its scale, and how many entries share one."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, isfinite
from typing import TYPE_CHECKING, Literal

from tailwise.number_formats.elements import Element
from tailwise.number_formats.grid import ValueGrid, snap_
from tailwise.number_formats.number_format import (
    NumberFormat,
    Quantized,
    Reach,
    check_block,
    chunks,
    nonzeros,
    not_finite,
)
from tailwise.number_formats.scales import ScaleRule, Scales

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class ScaledFormat(NumberFormat):
    """Entries are elements times a step; a tensor, a row or a group of a row shares the step.

    Where the columns are not a multiple of the group, the last group of a row is shorter.
    """

    element: Element
    rule: ScaleRule
    shared: Literal["tensor", "channel"] | int  # who shares a scale; a number: so many entries along a row

    @property
    def element_bits(self) -> float:
        """Bits of a code."""
        return self.element.bits

    @property
    def group_size(self) -> int | None:
        """Entries along a row that share a scale."""
        return self.shared if isinstance(self.shared, int) else None

    def bits_per_weight(self, rows: int, cols: int) -> float:
        """The codes, the scales and zero points, and the scale of the tensor where there is one."""
        if rows < 1 or cols < 1:
            return self.element_bits
        scales = 1 if self.shared == "tensor" else rows * (ceil(cols / self.group_size) if self.group_size else 1)
        return self.element_bits + (scales * self.rule.bits + self.rule.tensor_bits) / (rows * cols)

    def quantize(self, block: torch.Tensor, reach: Reach | None = None) -> Quantized:
        """Scales from the block, then every entry to the nearest value; float32 throughout."""
        import torch

        check_block(block)
        rows, cols = block.shape
        tensor = self._of_tensor(block, reach)
        width = self._width(cols)
        values = torch.empty(rows, width * ceil(cols / width), dtype=torch.float32, device=block.device)
        chosen, overflow, underflow = [], 0, 0
        for part, chunk in zip(chunks(block), chunks(values, like=block), strict=True):
            entries = _fill(chunk, part, width)
            ends = self._ends(entries)
            scales = tensor.scales or self.rule.choose(*ends, block.dtype, tensor.scale or 1.0)
            nonzero = nonzeros(entries)
            overflow += self._overflow(entries, ends, scales)
            zeros = None if scales.zeros is None else scales.zeros[..., None]
            snap_(entries, self.element, scales.steps[..., None], zeros)
            underflow += nonzero - nonzeros(entries)
            chosen.append(scales)
        grid = self._grid([tensor.scales] if tensor.scales else chosen, tensor)
        return Quantized(values[:, :cols].contiguous(), overflow, underflow, grid)

    def grid(self, block: torch.Tensor, reach: Reach | None = None) -> ValueGrid:
        """The scales that `quantize` would choose for the block."""
        import torch

        check_block(block)
        tensor = self._of_tensor(block, reach)
        if tensor.scales:
            return self._grid([tensor.scales], tensor)
        width = self._width(block.shape[1])
        chosen = []
        for part in chunks(block):
            scratch = torch.empty(
                len(part), width * ceil(part.shape[1] / width), dtype=torch.float32, device=block.device
            )
            ends = self._ends(_fill(scratch, part, width))
            chosen.append(self.rule.choose(*ends, block.dtype, tensor.scale or 1.0))
        return self._grid(chosen, tensor)

    def _width(self, cols: int) -> int:
        """Entries along a row that are worked on with one scale."""
        return cols if self.group_size is None else min(self.group_size, cols)

    def _of_tensor(self, block: torch.Tensor, reach: Reach | None) -> _OfTensor:
        """What the whole tensor decides: its scales where it has one step, its scale where it has two levels."""
        import torch

        if self.shared != "tensor" and not self.rule.tensor_bits:
            return _OfTensor(None, None)
        whole = Reach.of([block]) if reach is None else reach
        if not isfinite(whole.amax):
            raise not_finite()
        if self.shared != "tensor":
            return _OfTensor(None, self.rule.tensor_scale(whole.amax))
        low, high = (whole.low, whole.high) if self.rule.signed else (-whole.amax, whole.amax)
        ends = torch.tensor([[min(low, 0.0)], [max(high, 0.0)]], device=block.device)
        return _OfTensor(self.rule.choose(ends[:1], ends[1:], block.dtype, 1.0), None)

    def _ends(self, entries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The smallest and largest entry of (rows, groups, width), each (rows, groups); zero is always within."""
        import torch

        if self.rule.signed:
            low, high = entries.amin(-1).clamp_(max=0), entries.amax(-1).clamp_(min=0)
        else:
            high = entries.abs().amax(-1)
            low = -high
        if not (torch.isfinite(high).all() and torch.isfinite(low).all()):
            raise not_finite()
        return low, high

    def _overflow(self, entries: torch.Tensor, ends: tuple[torch.Tensor, torch.Tensor], scales: Scales) -> int:
        """Entries that will be clipped by more than half a step."""
        import torch

        low, high = self.element.limits
        room = self.element.slack + self.rule.give * (high - low)
        offset = 0 if scales.zeros is None else scales.zeros
        bottom, top = (low - room - offset) * scales.steps, (high + room - offset) * scales.steps
        beyond = (ends[0] < bottom) | (ends[1] > top)  # groups that hold such entries, few or none
        if not beyond.any():
            return 0
        bottom, top = (end.expand(beyond.shape)[beyond][:, None] for end in (bottom, top))
        suspects = entries[beyond]
        return int(torch.count_nonzero((suspects < bottom) | (suspects > top)))

    def _grid(self, chosen: list[Scales], tensor: _OfTensor) -> ValueGrid:
        import torch

        zeros = [scales.zeros for scales in chosen if scales.zeros is not None]
        stored = chosen[0].stored.dtype
        # Not every type of scale can be concatenated: their bytes can.
        raw = torch.uint8 if chosen[0].stored.element_size() == 1 else stored
        return ValueGrid(
            self.element,
            torch.cat([scales.stored.view(raw) for scales in chosen]).view(stored),
            torch.cat([scales.steps for scales in chosen]),
            torch.cat(zeros) if zeros else None,
            tensor.scale,
            self.group_size,
        )


@dataclass(frozen=True)
class _OfTensor:
    scales: Scales | None
    scale: float | None


def _fill(chunk: torch.Tensor, part: torch.Tensor, width: int) -> torch.Tensor:
    """Copy `part` into the left of `chunk` as float32, zeros beside it; seen as (rows, groups, width)."""
    cols = part.shape[1]
    chunk[:, :cols].copy_(part)
    chunk[:, cols:].zero_()
    return chunk.view(len(chunk), -1, width)
