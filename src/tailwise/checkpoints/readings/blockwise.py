"""Codes with a scale per block, channel or tensor: fp8, int8, bitsandbytes, MXFP4, NVFP4.

- fp8: `weight` (F8) with a scale per tensor, per row, per expert or per block, under one of the names that tools give
  it:
  `weight_scale_inv` (DeepSeek-V3; the `inv` is of the quantizer, not of the reader), `weight_scale`, `scale`
  (DeepSeek-V3.2, also as powers of two in E8M0), `scale_weight` (ComfyUI). W = code · scale.
- int8: `weight` (I8) with `weight_scale` and no zero point, per tensor or row. W = code · scale.
- bitsandbytes int8 (Dettmers et al. 2022): `weight` (I8) and `SCB`, the largest magnitude of each row;
  W = code · SCB / 127.
- bitsandbytes 4-bit (Dettmers et al. 2023): two codes a byte, the first in the high half, one `absmax` per
  `blocksize` entries in row-major order, itself quantized to 8 bits where `nested_absmax` is there.
- MXFP4 (OCP Microscaling 1.0; the released gpt-oss): two E2M1 codes a byte, the first in the low half, one
  power-of-two scale (exponent + 127) per 32 entries; also as `weight` with E8M0 scales beside it (DeepSeek-V4).
- NVFP4 (ModelOpt): `weight` (U8, two E2M1 codes a byte), `weight_scale` (E4M3 per 16 entries), and `weight_scale_2`,
  one
  number for all. W = code · scale · scale₂.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.checkpoints.readings.compressed import settings_of
from tailwise.checkpoints.readings.four_bit import FP8, TILED, Fp4, comfy_format, is_fp4, real_scale, untiled

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec


@dataclass(frozen=True)
class Scaled:
    """Codes of one byte and their scales; of three axes or more, a stack of experts or a kernel."""

    name: str
    shape: tuple[int, ...]
    scale: str
    per_expert: bool  # one scale for each slab of the first axis
    block: tuple[int, int]  # rows and columns that share a scale
    dtype: str
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows (or experts) start:stop, float32."""
        codes = checkpoint.read_rows(self.name, start, stop)
        codes = codes if codes.element_size() == 8 else codes.float()
        scale = real_scale(checkpoint.read(self.scale))
        if scale.numel() == 1:
            return codes * scale.reshape(())
        if self.per_expert:
            return codes * scale.reshape(-1, *[1] * (codes.ndim - 1))[start:stop]
        scale = scale[:, None] if scale.ndim == 1 else scale
        if len(self.shape) > 2:
            return codes * _spread(scale[start:stop], self.block, self.shape[-2:])
        first = start // self.block[0]
        last = -(-stop // self.block[0])
        offset = start - first * self.block[0]
        wide = _spread(scale[first:last], self.block, ((last - first) * self.block[0], self.shape[1]))
        return codes * wide[offset : offset + stop - start]


def _spread(scale: torch.Tensor, block: tuple[int, int], shape: tuple[int, ...]) -> torch.Tensor:
    """Scales (…, R/block, C/block) repeated to (…, R, C)."""
    wide = scale.repeat_interleave(block[0], -2)[..., : shape[-2], :]
    return wide.repeat_interleave(block[1], -1)[..., : shape[-1]]


@dataclass(frozen=True)
class TiledMxfp8:
    """ComfyUI's MXFP8: fp8 codes and powers of two, one per 32 entries, in cuBLAS' tiles."""

    shape: tuple[int, ...]
    codes: str
    scale: str
    dtype: str = "MXFP8"
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32."""
        import torch

        stored = checkpoint.read(self.scale)
        scale = untiled(stored.view(torch.uint8), self.shape[0], self.shape[1] // 32)[start:stop]
        return checkpoint.read_rows(self.codes, start, stop).float() * real_scale(scale).repeat_interleave(32, -1)


@dataclass(frozen=True)
class Int8:
    """A bitsandbytes int8 weight."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]  # the weight, SCB, and weight_format where it is stored
    dtype: str = "BNB_INT8"
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32."""
        import torch

        largest = checkpoint.read(self.members[1]).reshape(-1, 1)[start:stop].to(torch.float32)
        return checkpoint.read_rows(self.name, start, stop).to(torch.float32) * (largest / 127)


_REAL_SCALES = frozenset({"F32", "F16", "BF16", "F64", "F8_E8M0"})


@lru_cache(maxsize=256)
def _scale_names(leaf: str) -> tuple[str, ...]:
    """The names that tools give to the scale of a weight."""
    own = (f"{leaf}_scale_inv", f"{leaf}_scale")
    return (*own, "scale", "scale_weight", "qscale_weight") if leaf == "weight" else own


def find_scaled(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Weights of one byte with a scale of a known name beside them."""
    if checkpoint.format == "gguf":
        yield from _of_llama_cpp(group)
        return
    if "pre_quant_scale" in group.leaves or comfy_format(group, checkpoint) in TILED:
        return
    for leaf, spec in group.leaves.items():
        whole = spec.dtype == "I8" and leaf == "weight" and settings_of(checkpoint) is None
        if len(spec.shape) < 2 or not (spec.dtype in FP8 or whole):
            continue
        names = ("weight_scale",) if whole else _scale_names(leaf)
        scales = [group.leaves[name] for name in names if name in group.leaves]
        if not scales or (whole and _is_more_than_scaled(group)) or is_fp4(group, leaf):
            continue
        yield _scaled(group.named(leaf), spec, scales, len(scales) == 1 and f"{leaf}_zero_point" not in group.leaves)


def _of_llama_cpp(group: Siblings) -> Iterator[Claim]:
    """`weight` and `scale`, one number or one an expert, that llama.cpp multiplies what the layer gives with."""
    spec, scale = group.leaves.get("weight"), group.leaves.get("scale")
    if spec is not None and scale is not None and len(spec.shape) > 1:
        yield _scaled(spec.name, spec, [scale], prod(scale.shape) == 1 or len(spec.shape) == 3)


def _is_more_than_scaled(group: Siblings) -> bool:
    if any(".quant_state." in leaf for leaf in group.leaves):
        return True
    return any(name in group.leaves for name in ("weight_zero_point", "weight_scale_2", "pre_quant_scale", "SCB"))


def _scaled(name: str, spec: TensorSpec, scales: list[TensorSpec], plain: bool) -> Claim:
    scale = scales[0]
    exponents = scale.dtype == "U8" and spec.dtype in FP8
    fit = _fit(spec.shape, scale.shape) if plain and (scale.dtype in _REAL_SCALES or exponents) else None
    members = (spec.name, *(item.name for item in scales))
    if fit is None:
        shapes = " and ".join(str(item.shape) for item in scales)
        kind = "fp8" if spec.dtype in FP8 else "int8"
        return Refused(
            members,
            f"{kind} of shape {spec.shape} with scales of shape {shapes}, a layout not known here; "
            "audit the model before quantization, or save it dequantized",
        )
    per_expert, block = fit
    return Read(name, members, Scaled(name, spec.shape, scale.name, per_expert, block, spec.dtype))


@lru_cache(maxsize=4096)
def _fit(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[bool, tuple[int, int]] | None:
    """Whether the scales are one an expert, and the rows and columns that share one; None where shapes do not fit.

    Blocks are 128 × 128 in every published model; other sizes are powers of two, the smallest that covers.
    """
    whole = shape[-2], shape[-1]
    if prod(scale) == 1:
        return False, whole
    if len(shape) > 2 and prod(scale) == shape[0] == scale[0]:
        return True, whole
    if len(shape) > 3:
        return None
    if len(scale) == 1 and scale[0] == shape[-2]:
        return (False, (1, shape[-1])) if len(shape) == 2 else None
    if len(scale) != len(shape) or scale[:-2] != shape[:-2] or 0 in scale or 0 in shape:
        return None
    sides = _side(shape[-2], scale[-2]), _side(shape[-1], scale[-1])
    return (False, (sides[0], sides[1])) if sides[0] and sides[1] else None


def _side(length: int, count: int) -> int:
    """Entries that share a scale along one axis, 0 where no block size gives so many scales."""
    if count == 1:
        return length
    sizes = (128, 1, 2, 4, 8, 16, 32, 64, 256, 512, length // count if length % count == 0 else 1)
    return next((size for size in sizes if -(-length // size) == count), 0)


def find_comfy(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """ComfyUI's NVFP4 and MXFP8, whose scales lie in cuBLAS' tiles."""
    kind = comfy_format(group, checkpoint)
    spec, scale, overall = (group.leaves.get(leaf) for leaf in ("weight", "weight_scale", "weight_scale_2"))
    if kind not in TILED or spec is None or scale is None or len(spec.shape) != 2:
        return
    members = group.pick("weight", "weight_scale", "weight_scale_2")
    size, width = (16, 2 * spec.shape[1]) if kind == "nvfp4" else (32, spec.shape[1])
    tiles = -(-spec.shape[0] // 128) * -(-(width // size) // 4)
    fits = width % size == 0 and prod(scale.shape) == 512 * tiles
    if not fits or (kind == "nvfp4") != (overall is not None) or "pre_quant_scale" in group.leaves:
        why = f"{kind} of ComfyUI of shape {spec.shape} with scales of shape {scale.shape}, a layout not known here"
        yield Refused(members, f"{why}; audit the model before quantization")
    elif overall is not None:
        codec = Fp4((spec.shape[0], width), spec.name, scale.name, overall.name, size, "NVFP4", tiled=True)
        yield Read(spec.name, members, codec)
    else:
        yield Read(spec.name, members, TiledMxfp8(spec.shape, spec.name, scale.name))


def find_bnb8(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """A weight with an `SCB` beside it."""
    del checkpoint
    spec, scale = group.leaves.get("weight"), group.leaves.get("SCB")
    if spec is None or scale is None or spec.dtype != "I8" or len(spec.shape) != 2:
        return
    if any(leaf.startswith("weight.quant_state.") for leaf in group.leaves):
        return  # which says itself what the codes are
    members = group.pick("weight", "SCB", "weight_format")
    if prod(scale.shape) == spec.shape[0]:
        yield Read(spec.name, members, Int8(spec.name, spec.shape, members))
    else:
        yield Refused(members, f"int8 of shape {spec.shape} with an SCB of shape {scale.shape}; save the model again")
