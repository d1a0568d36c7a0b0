"""Elements: how one scaled number is rounded to the few values that a code can stand for.

All round to nearest, ties to even, and clip to their range (NF4, which has no even and odd, sends a tie down).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Element(ABC):
    """The values of a code, and the way to the nearest of them."""

    bits: int

    @property
    @abstractmethod
    def limits(self) -> tuple[float, float]:
        """The smallest and the largest value."""

    @property
    @abstractmethod
    def slack(self) -> float:
        """Half a step at the ends: what lies farther out than this is overflow."""

    @abstractmethod
    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """Round in place, float32 of any shape; returns its argument."""

    @abstractmethod
    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """Codes of rounded elements, one an entry: int8 for integers, torch's type for fp8, else bits in a uint8."""


@dataclass(frozen=True)
class Integer(Element):
    """Signed integers of `bits` bits, in two's complement: −2^(b−1) … 2^(b−1) − 1."""

    bits: int

    @property
    def limits(self) -> tuple[float, float]:
        """Integers reach one farther down than up."""
        half = 2 ** (self.bits - 1)
        return float(-half), float(half - 1)

    @property
    def slack(self) -> float:
        """Half of a step of one."""
        return 0.5

    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """Ties to even, as `torch.round` has it."""
        low, high = self.limits
        return scaled.round_().clamp_(low, high)

    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """int8, signed."""
        import torch

        return elements.to(torch.int8)


@dataclass(frozen=True)
class Unsigned(Element):
    """Integers of `bits` bits without a sign: 0 … 2^b − 1."""

    bits: int

    @property
    def limits(self) -> tuple[float, float]:
        """From zero."""
        return 0.0, float(2**self.bits - 1)

    @property
    def slack(self) -> float:
        """Half of a step of one."""
        return 0.5

    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """Ties to even."""
        return scaled.round_().clamp_(*self.limits)

    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """uint8."""
        import torch

        return elements.to(torch.uint8)


@dataclass(frozen=True)
class MiniFloat(Element):
    """A sign, `exponent` and `mantissa` bits, no infinities and no NaN (OCP MX 1.0, section 5.3: FP4 and FP6)."""

    exponent: int
    mantissa: int

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Sign, exponent, mantissa."""
        return 1 + self.exponent + self.mantissa

    @property
    def least_exponent(self) -> int:
        """The exponent of the smallest normal number: 1 − bias."""
        return 2 - (1 << (self.exponent - 1))

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest number: the spec's emax."""
        return 1 << (self.exponent - 1)

    @property
    def limits(self) -> tuple[float, float]:
        """Plus and minus the number whose bits are all ones."""
        top = 2.0**self.largest_exponent * (2 - 2.0**-self.mantissa)
        return -top, top

    @property
    def slack(self) -> float:
        """Half of the widest step."""
        return float(2.0 ** (self.largest_exponent - self.mantissa - 1))

    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """Ties to even; the sign of zero stays."""
        import torch

        low, high = self.limits
        # Adding 1.5·2^23 steps of the element to a float32 leaves no room for less than a step, so that the addition
        # itself rounds, ties to even.
        power = (scaled.view(torch.int32) & 0x7F800000).view(torch.float32)
        power.clamp_(2.0**self.least_exponent, 2.0**self.largest_exponent)
        anchor = power.mul_(1.5 * 2 ** (23 - self.mantissa))
        rounded = torch.add(scaled, anchor).sub_(anchor).clamp_(low, high)
        return torch.copysign(rounded, scaled, out=scaled)

    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """Sign, exponent and mantissa in the low bits of a uint8."""
        import torch

        magnitudes = torch.tensor(self.magnitudes, device=elements.device)
        index = torch.bucketize(elements.abs(), magnitudes, out_int32=True).to(torch.uint8)
        return index | (torch.signbit(elements).to(torch.uint8) << (self.bits - 1))

    @property
    def magnitudes(self) -> tuple[float, ...]:
        """The values of the codes without a sign, ascending: their place is their code."""
        ones = 2**self.mantissa
        return tuple(
            2.0 ** (self.least_exponent + max(field - 1, 0)) * ((field > 0) + fraction / ones)
            for field in range(2**self.exponent)
            for fraction in range(ones)
        )


@dataclass(frozen=True)
class Float8(Element):
    """torch's own 8-bit floats: `float8_e4m3fn` (up to 448) or `float8_e5m2` (up to 57344)."""

    dtype: str
    bits: int = 8

    @property
    def limits(self) -> tuple[float, float]:
        """The largest finite numbers."""
        top = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0}[self.dtype]
        return -top, top

    @property
    def slack(self) -> float:
        """Half of the widest step: 2^(8−3−1), 2^(15−2−1)."""
        return {"float8_e4m3fn": 16.0, "float8_e5m2": 4096.0}[self.dtype]

    @property
    def largest_exponent(self) -> int:
        """The exponent of the largest number."""
        return {"float8_e4m3fn": 8, "float8_e5m2": 15}[self.dtype]

    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """Clipped first: beyond the range the cast makes infinities, or NaN before torch 2.12."""
        low, high = self.limits
        return scaled.copy_(self.codes(scaled.clamp_(low, high)))

    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """A tensor of torch's dtype: the bits with a meaning."""
        import torch

        return elements.to(getattr(torch, self.dtype))


@dataclass(frozen=True)
class ValueTable(Element):
    """Values that follow no rule: the nearest of an ascending table within [−1, 1]."""

    values: tuple[float, ...]

    @property
    def bits(self) -> int:  # type: ignore[override]
        """Enough for an index."""
        return (len(self.values) - 1).bit_length()

    @property
    def limits(self) -> tuple[float, float]:
        """The ends of the table."""
        return self.values[0], self.values[-1]

    @property
    def slack(self) -> float:
        """Half of the wider of the outermost steps."""
        return max(self.values[1] - self.values[0], self.values[-1] - self.values[-2]) / 2

    def round_(self, scaled: torch.Tensor) -> torch.Tensor:
        """A tie goes to the smaller value."""
        import torch

        index = self._index(scaled).flatten()
        values = torch.tensor(self.values, device=scaled.device)
        return torch.index_select(values, 0, index, out=scaled.view(-1)).view_as(scaled)

    def codes(self, elements: torch.Tensor) -> torch.Tensor:
        """Places in the table, uint8."""
        import torch

        return self._index(elements.contiguous()).to(torch.uint8)

    def _index(self, scaled: torch.Tensor) -> torch.Tensor:
        """Which value is nearest, int32.

        Cells of equal width hold one midpoint each at most, so one look at the cell and one comparison find it:
        several times faster than a binary search.
        """
        import torch

        width, below, midpoint = _cells(self.values)
        cell = scaled.add(1).mul_(width).clamp_(0, 2 * width - 1).to(torch.int32).flatten()
        upper = scaled.flatten() > torch.tensor(midpoint, device=cell.device).index_select(0, cell)
        index = torch.tensor(below, dtype=torch.int32, device=cell.device).index_select(0, cell)
        return index.add_(upper).view_as(scaled)


@lru_cache(maxsize=8)
def _cells(values: tuple[float, ...]) -> tuple[int, tuple[int, ...], tuple[float, ...]]:
    """Cells per unit; for every cell of [−1, 1) the values below its start, and the midpoint inside it or +inf."""
    midpoints = [(low + high) / 2 for low, high in pairwise(values)]
    width = 1
    while True:
        edges = [-1 + cell / width for cell in range(2 * width + 1)]
        inside = [[m for m in midpoints if low < m <= high] for low, high in pairwise(edges)]
        # A float32 may fall into the neighbouring cell, which must not hold the edge's midpoint.
        clear = all(abs((m + 1) * width - round((m + 1) * width)) > 1e-4 for m in midpoints)
        if clear and all(len(group) <= 1 for group in inside):
            break
        width *= 2
    below = tuple(sum(m <= edge for m in midpoints) for edge in edges[:-1])
    return width, below, tuple(group[0] if group else float("inf") for group in inside)
