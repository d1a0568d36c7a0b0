"""torchao's tensors in safetensors: codes, scales and zero points under names of their own.

The classes are Int8Tensor, IntxUnpackedToInt8Tensor, Float8Tensor and NVFP4Tensor; the weight `m.weight` lies as
`m._weight_qdata`, `m._weight_scale`, and where there is one `m._weight_zero_point`. The shapes tell the groups:
W = (code − zero) · scale. NVFP4 has two E2M1 codes a byte, the first in the low half, an fp8 scale per 16 entries, and
`m._weight_per_tensor_scale`, which multiplies them.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.checkpoints.readings.four_bit import e2m1

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

_CODES = ("I8", "F8_E4M3", "F8_E5M2", "U8")
_SUFFIXES = ("qdata", "scale", "zero_point", "per_tensor_scale")
_OTHERS = ("act_pre_scale", "act_quant_scale", "act_quant_zero_point", "scale_and_zero")


@dataclass(frozen=True)
class TorchAoTensor:
    """One weight, decoded to (out × in)."""

    stem: str  # of the stored names
    shape: tuple[int, ...]
    members: tuple[str, ...]
    code: str  # dtype of the codes
    by_rows: bool = False

    @property
    def dtype(self) -> str:
        """`AO_I8` and the like."""
        return "AO_NVFP4" if self.code == "U8" else f"AO_{self.code}"

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of W, float32."""
        import torch

        codes = checkpoint.read(f"{self.stem}qdata")
        values = e2m1(codes) if self.code == "U8" else codes.to(torch.float32)
        scale = checkpoint.read(f"{self.stem}scale").to(torch.float32)
        if f"{self.stem}per_tensor_scale" in self.members:
            scale = scale * checkpoint.read(f"{self.stem}per_tensor_scale").to(torch.float32)
        if f"{self.stem}zero_point" in self.members:
            values = values - _spread(checkpoint.read(f"{self.stem}zero_point").to(torch.float32), self.shape)
        return (values * _spread(scale, self.shape))[start:stop]


def _spread(scale: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Scales (R/block, C/block) repeated to (R, C)."""
    for axis in (0, 1):
        scale = scale.repeat_interleave(shape[axis] // scale.shape[axis], axis)
    return scale


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Weights of two axes whose scales divide them; of the other classes, the reason."""
    del checkpoint
    leaves = group.leaves
    for leaf, spec in leaves.items():
        weight = leaf.removeprefix("_").removesuffix("_qdata")
        if leaf != f"_{weight}_qdata":
            continue
        stem = f"_{weight}_"
        scale = leaves.get(f"{stem}scale")
        shape = (spec.shape[0], 2 * spec.shape[1]) if spec.dtype == "U8" and len(spec.shape) == 2 else spec.shape
        members = group.pick(*(f"{stem}{suffix}" for suffix in _SUFFIXES))
        others = group.pick(*(f"{stem}{suffix}" for suffix in _OTHERS))
        zero, overall = (leaves.get(f"{stem}{suffix}") for suffix in ("zero_point", "per_tensor_scale"))
        fits = (zero is None or _divides(zero.shape, shape)) and (overall is None or overall.numel == 1)
        if not others and scale is not None and spec.dtype in _CODES and _divides(scale.shape, shape) and fits:
            yield Read(group.named(weight), members, TorchAoTensor(group.named(stem), shape, members, spec.dtype))
        else:
            yield Refused(
                members + others,
                "weights of torchao in a layout that is not known here; audit the model before quantization",
            )


def _divides(scale: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    two = len(shape) == 2 and len(scale) == 2
    return two and all(part and not whole % part for whole, part in zip(shape, scale, strict=True))
