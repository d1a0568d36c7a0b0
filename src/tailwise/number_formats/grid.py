"""Scales and zero points that are fixed: what GPTQ rounds columns to, and what a packed checkpoint stores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tailwise.number_formats.elements import Element


@dataclass(frozen=True, eq=False)
class ValueGrid:
    """The values that the entries of a block can take: value = (element − zero) · step, or element · step + low."""

    element: Element
    scales: torch.Tensor  # as stored, (rows, groups); (1, 1) for one of a tensor
    steps: torch.Tensor  # the same as numbers, float32: what one unit of the element is worth
    zeros: torch.Tensor | None = None  # int8, the element that stands for zero; None: zero itself
    tensor_scale: float | None = None  # step = scale / tensor_scale, where the format has one
    group_size: int | None = None  # columns that share a scale; None: all
    lows: torch.Tensor | None = None  # what an element of zero is worth, in the shape and type of `scales`

    def round(self, columns: torch.Tensor, start: int = 0) -> torch.Tensor:
        """The nearest values to some columns, (rows, c), of which the first is column `start` of the block."""
        import torch

        steps, zeros, lows = self._of(columns.shape[1], start)
        scaled = columns.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        if zeros is not None:
            return snap_(scaled, self.element, steps, zeros)
        scaled = (scaled if lows is None else scaled.sub_(lows)).div_(_divisors(steps))
        rounded = self.element.round_(scaled).mul_(steps)
        return rounded if lows is None else rounded.add_(lows)

    def codes(self, values: torch.Tensor, start: int = 0) -> torch.Tensor:
        """The codes of values on the grid, (rows, c); see `Element.codes`."""
        import torch

        steps, zeros, lows = self._of(values.shape[1], start)
        scaled = values.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        scaled = (scaled if lows is None else scaled.sub_(lows)).div_(_divisors(steps))
        return self.element.codes(self.element.round_(scaled if zeros is None else scaled.add_(zeros)))

    def _of(self, count: int, start: int) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        """Steps, zero points and lows of columns start … start + count − 1, each (rows, count) or (rows, 1)."""
        import torch

        lows = None if self.lows is None else self.lows.float()
        if self.group_size is None:
            return self.steps, self.zeros, lows
        groups = torch.arange(start, start + count, device=self.steps.device) // self.group_size
        zeros = None if self.zeros is None else self.zeros[:, groups]
        return self.steps[:, groups], zeros, None if lows is None else lows[:, groups]


def _divisors(steps: torch.Tensor) -> torch.Tensor:
    """A step of zero, which llama.cpp's blocks can have, makes every entry zero."""
    return steps.masked_fill(steps == 0, float("inf"))


def snap_(
    scaled: torch.Tensor, element: Element, steps: torch.Tensor, zeros: torch.Tensor | None = None
) -> torch.Tensor:
    """Replace float32 entries by the nearest values of a grid, in place; steps and zeros broadcast."""
    scaled.div_(steps)
    if zeros is None:
        return element.round_(scaled).mul_(steps)
    # The zero point is added before rounding, as compressed-tensors does; torchao adds it after, and ties differ.
    return element.round_(scaled.add_(zeros)).sub_(zeros).mul_(steps)
