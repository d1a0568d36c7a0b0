"""Scales: from the ends of a group of entries to the step that one unit of an element is worth.

Every rule takes the smallest and the largest entry of each group, both ends reaching zero at least, and gives the
scales as they are stored and as float32. A group of zeros has the scale one.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tailwise.number_formats.elements import Element, Float8, MiniFloat


@dataclass(frozen=True, eq=False)
class Scales:
    """What a rule chose: `stored` in its own type, `steps` in float32, `zeros` in int8."""

    stored: torch.Tensor
    steps: torch.Tensor
    zeros: torch.Tensor | None = None


class ScaleRule(ABC):
    """How a group gets its scale."""

    #: Bits of one scale, with its zero point, and of a scale of the whole tensor beside them.
    bits: int
    tensor_bits = 0
    #: Whether the ends are needed apart; magnitudes are found faster.
    signed = False
    #: How far rounding the stored scale can push the largest entry out, in parts of it: that is no overflow.
    give = 0.0

    @abstractmethod
    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:
        """The scales of groups whose entries lie in [low, high], float32.

        `like`: the type of the weights. `tensor`: the scale of the whole tensor, 1 where the format has none.
        """

    def tensor_scale(self, amax: float) -> float | None:  # noqa: ARG002
        """The scale of a whole tensor with the largest magnitude `amax`; None where `tensor_bits` is 0."""
        return None


@dataclass(frozen=True)
class Symmetric(ScaleRule):
    """amax / ((2^b − 1)/2), in 16 bits: compressed-tensors' `calculate_qparams` and torchao's `SYMMETRIC`.

    The whole range −2^(b−1) … 2^(b−1) − 1 is used; the largest entry, where positive, is clipped by half a step.
    Scales are stored as the weights' type: float16 for float16, else bfloat16.
    """

    element_bits: int
    bits: int = 16
    give = 2.0**-8

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """One scale a group."""
        stored = _in_16_bits(high.div((2**self.element_bits - 1) / 2), like)
        return Scales(stored, stored.float())


@dataclass(frozen=True)
class Asymmetric(ScaleRule):
    """(high − low)/(2^b − 1) in 16 bits, and the integer that stands for zero in b bits."""

    element_bits: int
    signed = True
    give = 2.0**-8

    @property
    def bits(self) -> int:  # type: ignore[override]
        """The scale and the zero point."""
        return 16 + self.element_bits

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """The zero point is found from the scale as it is stored, so that both fit each other."""
        import torch

        # Halved first: the ends may be farther apart than float32 reaches.
        stored = _in_16_bits((high / 2 - low / 2).div_((2**self.element_bits - 1) / 2), like)
        steps = stored.float()
        half = 2 ** (self.element_bits - 1)
        zeros = (-half - (low / steps).round_()).clamp_(-half, half - 1)
        return Scales(stored, steps, zeros.to(torch.int8))


@dataclass(frozen=True)
class LargestFloat32(ScaleRule):
    """amax / `top` in float32: torchao's and compressed-tensors' fp8, and QLoRA's absmax with `top` = 1."""

    top: float
    bits: int = 32

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """One scale a group."""
        steps = _ones_for_zeros(high / self.top)
        return Scales(steps, steps)


@dataclass(frozen=True)
class PowerOfTwo(ScaleRule):
    """2^(⌊log2 amax⌋ − emax), stored as its exponent + 127 (E8M0): OCP MX 1.0, section 6.3, torchao's `FLOOR`.

    The largest entry of a group lies below 2^(emax + 1), so it may be clipped. compressed-tensors' observers round the
    exponent up near the next power instead; they store and decode it in the same way. torchao divides a group whose
    scale is 2^−127 by 2^−126, which is mended here.
    """

    element: MiniFloat | Float8
    bits: int = 8

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """Exponents in uint8; a group of zeros gets the smallest, 2^−127."""
        import torch

        exponents = (high.view(torch.int32) >> 23).sub_(self.element.largest_exponent).clamp_(0, 254)
        # The reciprocal is a normal number where 2^−127 itself is not.
        steps = ((254 - exponents) << 23).view(torch.float32).reciprocal_()
        return Scales(exponents.to(torch.uint8), steps)


@dataclass(frozen=True)
class TwoLevel(ScaleRule):
    """NVFP4: amax / 6 in fp8, times 448·6 / amax of the tensor in float32: compressed-tensors' numbers.

    torchao stores the reciprocal of the tensor's scale and no block scale below 2^−6; here the subnormal ones of e4m3
    count too, and 0.125 stands where a scale would be zero.
    """

    element: Element
    bits: int = 8
    tensor_bits = 32

    def choose(self, low: torch.Tensor, high: torch.Tensor, like: torch.dtype, tensor: float) -> Scales:  # noqa: ARG002
        """One fp8 scale a group; the tensor's scale is divided out of the steps."""
        import torch

        scaled = (high / self.element.limits[1]).mul_(tensor).clamp_(max=448.0).to(torch.float8_e4m3fn)
        wide = scaled.float()
        wide[wide == 0] = 0.125
        return Scales(wide.to(torch.float8_e4m3fn), wide / tensor)

    def tensor_scale(self, amax: float) -> float:
        """448·6 / amax, float32; one where that is not finite."""
        import torch

        scale = 448.0 * self.element.limits[1] / torch.tensor(amax).clamp_(min=torch.finfo(torch.float32).tiny)
        return float(scale) if torch.isfinite(scale) else 1.0


def _in_16_bits(steps: torch.Tensor, like: torch.dtype) -> torch.Tensor:
    import torch

    return _ones_for_zeros(steps.to(torch.float16 if like == torch.float16 else torch.bfloat16))


def _ones_for_zeros(steps: torch.Tensor) -> torch.Tensor:
    steps[steps == 0] = 1
    return steps
