"""Codes with a scale per block, channel or tensor: fp8, bitsandbytes, MXFP4.

- fp8: `weight` (F8) with `weight_scale_inv` (DeepSeek-V3: one per 128 × 128 block) or `weight_scale` (one per
  tensor, per row, or per block). W = code · scale; the `inv` is of the quantizer, not of the reader.
- bitsandbytes int8 (Dettmers et al. 2022): `weight` (I8) and `SCB`, the largest magnitude of each row;
  W = code · SCB / 127.
- bitsandbytes 4-bit (Dettmers et al. 2023): two codes a byte, the first in the high half, one `absmax` per
  `blocksize` entries in row-major order, itself quantized to 8 bits where `nested_absmax` is there.
- MXFP4 (OCP Microscaling 1.0; the released gpt-oss): two E2M1 codes a byte, the first in the low half, one
  power-of-two scale (exponent + 127) per 32 entries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@dataclass(frozen=True)
class Fp8:
    """An fp8 weight and its scales; of three axes, a stack of experts."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]  # the weight, its scales
    block: tuple[int, int]  # rows and columns that share a scale
    dtype: str
    recipe: str = "fp8"
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows (or experts) start:stop, float32."""
        import torch

        codes = checkpoint.read_rows(self.name, start, stop).to(torch.float32)
        scale = checkpoint.read(self.members[1])
        if scale.dtype == torch.uint8:  # E8M0 exponents
            scale = torch.exp2(scale.to(torch.float32) - 127)
        scale = scale.to(torch.float32)
        scale = scale[:, None] if scale.ndim == 1 else scale
        if scale.numel() == 1:
            return codes * scale.reshape(())
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
class Int8:
    """A bitsandbytes int8 weight."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]  # the weight, SCB, and weight_format where it is stored
    dtype: str = "BNB_INT8"
    recipe: str = "int8"
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32."""
        import torch

        largest = checkpoint.read(self.members[1]).reshape(-1, 1)[start:stop].to(torch.float32)
        return checkpoint.read_rows(self.name, start, stop).to(torch.float32) * (largest / 127)


@dataclass(frozen=True)
class Bnb4:
    """A bitsandbytes nf4 or fp4 weight."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    kind: str  # nf4, fp4
    blocksize: int
    nested_blocksize: int
    nested_offset: float
    recipe: str = "bnb4"
    by_rows: bool = False

    @property
    def dtype(self) -> str:
        """`BNB_NF4` or `BNB_FP4`."""
        return f"BNB_{self.kind.upper()}"

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows start:stop, float32."""
        import torch

        packed = checkpoint.read(self.name).reshape(-1).view(torch.uint8)
        codes = torch.stack((packed >> 4, packed & 15), 1).reshape(-1)[: prod(self.shape)]
        values = checkpoint.read(f"{self.name}.quant_map").to(torch.float32)[codes.to(torch.int64)]
        largest = self._absmax(checkpoint).repeat_interleave(self.blocksize)[: values.numel()]
        return (values * largest).reshape(self.shape)[start:stop]

    def _absmax(self, checkpoint: Checkpoint) -> torch.Tensor:
        import torch

        stored = checkpoint.read(f"{self.name}.absmax").reshape(-1)
        if f"{self.name}.nested_absmax" not in self.members:
            return stored.to(torch.float32)
        table = checkpoint.read(f"{self.name}.nested_quant_map").to(torch.float32)
        outer = checkpoint.read(f"{self.name}.nested_absmax").to(torch.float32).reshape(-1)
        outer = outer.repeat_interleave(self.nested_blocksize)[: stored.numel()]
        return table[stored.to(torch.int64)] * outer + self.nested_offset


@dataclass(frozen=True)
class Mxfp4:
    """gpt-oss experts, blocks (E, out, in/32, 16) and scales (E, out, in/32), decoded to (E, in, out)."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    dtype: str = "MXFP4"
    recipe: str = "mxfp4"
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Experts start:stop, float32."""
        import torch

        packed = checkpoint.read_rows(self.members[0], start, stop)  # (e, out, G, 16)
        exponent = checkpoint.read_rows(self.members[1], start, stop).to(torch.float32) - 127
        values = e2m1(packed) * torch.exp2(exponent)[..., None]  # (e, out, G, 32)
        return values.flatten(-2).transpose(1, 2)


def e2m1(packed: torch.Tensor) -> torch.Tensor:
    """Bytes (…, n) of two E2M1 codes, the first in the low half, to their values (…, 2n), float32."""
    import torch

    table = torch.tensor((*_E2M1, *(-v for v in _E2M1)))
    codes = torch.stack((packed & 15, packed >> 4), -1).flatten(-2)
    return table[codes.to(torch.int64)]


def find_fp8(tensors: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> Iterator[tuple[str, Fp8 | str]]:
    """Matrices in F8 with a scale beside them."""
    del checkpoint
    for name, spec in tensors.items():
        if spec.dtype not in ("F8_E4M3", "F8_E5M2") or len(spec.shape) not in (2, 3):
            continue
        scale = tensors.get(f"{name}_scale_inv") or tensors.get(f"{name}_scale")
        if scale is None:
            continue  # stored without scales: the codes are the weights
        block = _block(spec.shape, scale.shape)
        if block is None:
            yield (
                name,
                f"fp8 of shape {spec.shape} with scales of shape {scale.shape}, a layout not known here",
            )
        else:
            yield name, Fp8(name, spec.shape, (name, scale.name), block, spec.dtype)


def _block(shape: tuple[int, ...], scale: tuple[int, ...]) -> tuple[int, int] | None:
    """How many rows and columns share a scale, or None where the shapes do not fit.

    Blocks are 128 × 128 in every published model; other sizes are powers of two, the smallest that covers.
    """
    if prod(scale) == 1:
        return shape[-2], shape[-1]
    if len(scale) == 1 and scale[0] == shape[-2]:
        return 1, shape[-1]
    if len(scale) != len(shape) or scale[:-2] != shape[:-2]:
        return None
    return _side(shape[-2], scale[-2]), _side(shape[-1], scale[-1])


def _side(length: int, count: int) -> int:
    if count == 1:
        return length
    fits = (size for size in (128, 1, 2, 4, 8, 16, 32, 64, 256, 512) if -(-length // size) == count)
    return next(fits, -(-length // count))


def find_int8(tensors: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> Iterator[tuple[str, Int8]]:
    """Weights with an `SCB` beside them."""
    del checkpoint
    for name, spec in tensors.items():
        module = name.removesuffix(".weight")
        scale = tensors.get(f"{module}.SCB")
        if spec.dtype == "I8" and len(spec.shape) == 2 and scale and prod(scale.shape) == spec.shape[0]:
            others = (f"{module}.SCB", f"{module}.weight_format")
            yield name, Int8(name, spec.shape, (name, *(o for o in others if o in tensors)))


def find_bnb4(tensors: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> Iterator[tuple[str, Bnb4]]:
    """Weights with a `quant_state` beside them, whose few bytes of JSON hold the shape."""
    for state in tensors:
        name, mark, kind = state.partition(".quant_state.bitsandbytes__")
        if not mark or name not in tensors:
            continue
        settings = json.loads(bytes(checkpoint.read(state).flatten().tolist()))
        suffixes = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        found = (f"{name}.{s}" for s in suffixes if f"{name}.{s}" in tensors)
        yield (
            name,
            Bnb4(
                name,
                tuple(settings["shape"]),
                (name, *found, state),
                kind,
                int(settings["blocksize"]),
                int(settings.get("nested_blocksize", 1)),
                float(settings.get("nested_offset", 0.0)),
            ),
        )


def find_mxfp4(tensors: Mapping[str, TensorSpec], checkpoint: Checkpoint) -> Iterator[tuple[str, Mxfp4]]:
    """Pairs `…_blocks`, `…_scales` of gpt-oss."""
    del checkpoint
    for name, spec in tensors.items():
        stem = name.removesuffix("_blocks")
        scale = tensors.get(f"{stem}_scales")
        if stem != name and scale and len(spec.shape) == 4 and scale.shape == spec.shape[:3]:
            E, out, groups, _ = spec.shape
            yield stem, Mxfp4(stem, (E, groups * 32, out), (name, scale.name))
