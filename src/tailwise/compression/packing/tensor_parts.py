"""What a packed tensor is made of: codes, scales, zero points."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch

from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.checkpoints.formats.common import torch_dtype
from tailwise.compression.plans.decision import Decision
from tailwise.number_formats.casts import PlainCast
from tailwise.number_formats.elements import Float8, Integer
from tailwise.number_formats.grid import ValueGrid
from tailwise.number_formats.number_format import NumberFormat
from tailwise.number_formats.scaled import ScaledFormat
from tailwise.number_formats.scales import Asymmetric, PowerOfTwo, Symmetric, TwoLevel


@dataclass(frozen=True, eq=False)
class Parts:
    """A matrix (out, in) as codes and scales."""

    codes: torch.Tensor  # one an element: int8, a float8, or bits in a uint8
    scales: torch.Tensor  # as stored: (out, groups), (out, 1), or (1, 1)
    zeros: torch.Tensor | None = None  # int8, in the shape of the scales
    tensor_scale: torch.Tensor | None = None  # float32, (1,): what the scales are divided by
    lows: torch.Tensor | None = None  # what a code of zero is worth, in the shape of the scales


@dataclass(frozen=True, eq=False)
class Coded:
    """One tensor of a plan as an operator left it."""

    decision: Decision
    stored: torch.Tensor  # as the dequantized checkpoint holds it, in shape and dtype of the source
    grid: ValueGrid | None  # None for a plain cast

    @property
    def format(self) -> NumberFormat:
        """That it is stored in: the plan's, or what stands in for it where its blocks do not divide the inputs."""
        return self.decision.number_format.fitting(self.stored.shape[-1])

    @property
    def parts(self) -> Parts:
        """Codes and scales of a matrix, whose values are `stored` up to the rounding of its dtype."""
        assert self.grid is not None  # noqa: S101 - a plain cast has no parts
        grid, whole = self.grid, self.grid.tensor_scale
        scale = None if whole is None else torch.tensor([whole], dtype=torch.float32)
        return Parts(grid.codes(self.stored), grid.scales, grid.zeros, scale, grid.lows)


def cast_of(chosen: NumberFormat) -> torch.dtype | None:
    """The dtype of a plain cast that checkpoints store; None for all other formats."""
    if isinstance(chosen, PlainCast) and chosen.bits < 64:
        return torch_dtype({"float32": "F32", "float16": "F16", "bfloat16": "BF16"}[chosen.dtype], where=chosen.name)
    return None


def empty_parts(chosen: ScaledFormat, spec: TensorSpec) -> Parts:
    """Parts without contents, on torch's meta device: the sizes that a file's header needs before any work."""
    out, inputs = spec.shape
    group = chosen.group_size
    shape = (1, 1) if chosen.shared == "tensor" else (out, 1 if group is None else ceil(inputs / group))
    zeros = _empty(shape, torch.int8) if isinstance(chosen.rule, Asymmetric) else None
    whole = _empty((1,), torch.float32) if chosen.rule.tensor_bits else None
    return Parts(_empty(spec.shape, _codes(chosen)), _empty(shape, _scales(chosen, spec)), zeros, whole)


def _empty(shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _codes(chosen: ScaledFormat) -> torch.dtype:
    if isinstance(chosen.element, Float8):
        dtype: torch.dtype = getattr(torch, chosen.element.dtype)
        return dtype
    return torch.int8 if isinstance(chosen.element, Integer) else torch.uint8


def _scales(chosen: ScaledFormat, spec: TensorSpec) -> torch.dtype:
    if isinstance(chosen.rule, Symmetric | Asymmetric):
        return torch.float16 if spec.dtype == "F16" else torch.bfloat16
    if isinstance(chosen.rule, PowerOfTwo):
        return torch.uint8
    return torch.float8_e4m3fn if isinstance(chosen.rule, TwoLevel) else torch.float32
