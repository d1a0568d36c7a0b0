"""Weights of four bits with a scale for each block: FP4 of NVIDIA and OCP, NF4 and FP4 of bitsandbytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.checkpoints.readings.compressed import settings_of
from tailwise.checkpoints.spread import spread
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec


_E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def real_scale(scale: torch.Tensor) -> torch.Tensor:
    """A scale as float32; bytes are exponents of two (E8M0)."""
    import torch

    return torch.exp2(scale.float() - 127) if scale.dtype == torch.uint8 else scale.float()


FP8 = frozenset({"F8_E4M3", "F8_E5M2"})
TILED = frozenset({"nvfp4", "mxfp8"})


def comfy_format(group: Siblings, checkpoint: Checkpoint) -> str:
    """The format that ComfyUI states for a layer, in a tensor of JSON beside it or in the file's header; or ""."""
    if "comfy_quant" not in group.leaves and "_quantization_metadata" not in checkpoint.metadata:
        return ""
    try:
        if (marker := group.leaves.get("comfy_quant")) is not None:
            document = json_of(bytes(checkpoint.read(marker.name).flatten().tolist()))
        else:
            document = json_of(checkpoint.metadata["_quantization_metadata"]).get("layers", {}).get(group.module, {})
        return str(document.get("format", ""))
    except (ValueError, AttributeError, TypeError):
        return ""


def untiled(scale: torch.Tensor, rows: int, cols: int) -> torch.Tensor:
    """Scales (rows × cols) from cuBLAS' layout for block scales: tiles of 128 × 4, within which rows 32 apart meet."""
    high, wide = -(-rows // 128), -(-cols // 4)
    tiles = scale.reshape(high * wide, 32, 4, 4).transpose(1, 2).reshape(high, wide, 128, 4)
    return tiles.permute(0, 2, 1, 3).reshape(high * 128, wide * 4)[:rows, :cols].contiguous()


@dataclass(frozen=True)
class Fp4:
    """Two E2M1 codes a byte (…, out, in/2), a scale per group of the input, and one for all where there is one."""

    shape: tuple[int, ...]
    codes: str
    scale: str
    overall: str | None
    group: int
    dtype: str  # NVFP4, MXFP4
    tiled: bool = False  # ComfyUI's: scales in cuBLAS' tiles, the first code of a byte in the high half
    by_rows: bool = True

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows (or experts) start:stop, float32."""
        import torch

        packed = checkpoint.read_rows(self.codes, start, stop).view(torch.uint8)
        values = e2m1(packed >> 4 | packed << 4 if self.tiled else packed)
        if self.tiled:
            scale = untiled(checkpoint.read(self.scale), self.shape[0], self.shape[1] // self.group)[start:stop]
        else:
            scale = checkpoint.read_rows(self.scale, start, stop)
        scale = real_scale(scale).repeat_interleave(self.group, -1)
        if self.overall is None:
            return values * scale
        overall = checkpoint.read(self.overall).float().reshape(-1)
        if overall.numel() > 1:  # one for each expert
            overall = overall[start:stop].reshape(-1, *[1] * (values.ndim - 1))
        return values * (scale * overall)


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
        largest = spread(self._absmax(checkpoint), self.blocksize, values.numel(), 0)
        return (values * largest).reshape(self.shape)[start:stop]

    def _absmax(self, checkpoint: Checkpoint) -> torch.Tensor:
        import torch

        stored = checkpoint.read(f"{self.name}.absmax").reshape(-1)
        if f"{self.name}.nested_absmax" not in self.members:
            return stored.to(torch.float32)
        table = checkpoint.read(f"{self.name}.nested_quant_map").to(torch.float32)
        outer = checkpoint.read(f"{self.name}.nested_absmax").to(torch.float32).reshape(-1)
        outer = spread(outer, self.nested_blocksize, stored.numel(), 0)
        return table[stored.to(torch.int64)] * outer + self.nested_offset


@dataclass(frozen=True)
class Mxfp4:
    """gpt-oss experts, blocks (E, out, in/32, 16) and scales (E, out, in/32), decoded to (E, in, out)."""

    name: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    dtype: str = "MXFP4"
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

    return e2m1_values(torch.stack((packed & 15, packed >> 4), -1).flatten(-2))


def e2m1_values(codes: torch.Tensor) -> torch.Tensor:
    """E2M1 codes (0 to 15) to their values, float32."""
    import torch

    return torch.tensor((*_E2M1, *(-v for v in _E2M1)))[codes.to(torch.int64)]


def is_fp4(group: Siblings, leaf: str) -> bool:
    """Whether a leaf has scales of NVFP4: one for each block and one for the tensor."""
    scale = group.leaves.get(f"{leaf}_scale")
    return f"{leaf}_scale_2" in group.leaves and scale is not None and scale.dtype == "F8_E4M3"


def find_fp4(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """NVFP4 as ModelOpt writes it, and MXFP4 with E8M0 scales beside the codes."""
    if comfy_format(group, checkpoint) in TILED:
        return
    for leaf, spec in group.leaves.items():
        if spec.dtype not in ("U8", "I8", "F4") or len(spec.shape) not in (2, 3):
            continue
        scale, overall = group.leaves.get(f"{leaf}_scale"), group.leaves.get(f"{leaf}_scale_2")
        powers = group.leaves.get("scale") if leaf == "weight" and scale is None else scale
        if scale is not None and overall is not None and scale.dtype == "F8_E4M3" and spec.dtype == "U8":
            if "pre_quant_scale" not in group.leaves:
                yield _fp4(group, leaf, spec, (scale, overall), 16)
        elif powers is not None and overall is None and _are_exponents(powers, spec, checkpoint):
            yield _fp4(group, leaf, spec, (powers, None), 32)


def _are_exponents(scale: TensorSpec, spec: TensorSpec, checkpoint: Checkpoint) -> bool:
    """Whether scales are powers of two of 32 entries each. Plain bytes are so only where the config says MXFP4."""
    if len(scale.shape) != len(spec.shape) or scale.shape[:-1] != spec.shape[:-1]:
        return False
    entries = spec.shape[-1] * (1 if spec.dtype == "F4" else 2)
    settings = str(checkpoint.config.get("quantization_config", "")).lower()
    named = ("mxfp4" in settings or ("fp4" in settings and "e8m0" in settings)) and settings_of(checkpoint) is None
    return scale.shape[-1] * 32 == entries and (scale.dtype == "F8_E8M0" or (scale.dtype == "U8" and named))


def _fp4(
    group: Siblings, leaf: str, spec: TensorSpec, scales: tuple[TensorSpec, TensorSpec | None], size: int
) -> Claim:
    scale, overall = scales
    members = (spec.name, scale.name, *(() if overall is None else (overall.name,)))
    shape = (*spec.shape[:-1], spec.shape[-1] * (1 if spec.dtype == "F4" else 2))
    fits = scale.shape == (*shape[:-1], shape[-1] // size) and shape[-1] % size == 0
    if spec.dtype == "F4" and fits:
        why = "4-bit floats stored as safetensors' F4 (two in a byte), which tailwise does not unpack"
        return Refused(members, f"{why}; save the codes as U8, or audit the model before quantization")
    if not fits or (overall is not None and prod(overall.shape) not in (1, shape[0])):
        return Refused(
            members,
            f"4-bit codes of shape {spec.shape} with scales of shape {scale.shape}, a layout not known here; "
            "audit the model before quantization",
        )
    kind = "NVFP4" if size == 16 else "MXFP4"
    codec = Fp4(shape, spec.name, scale.name, None if overall is None else overall.name, size, kind)
    return Read(group.named(leaf), members, codec)


def find_bnb4(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Weights with a `quant_state` beside them, whose few bytes of JSON hold the shape."""
    for leaf, state in group.leaves.items():
        stem, mark, kind = leaf.partition(".quant_state.bitsandbytes__")
        spec = group.leaves.get(stem)
        if not mark or spec is None or spec.dtype in FP8:
            continue
        suffixes = ("absmax", "quant_map", "nested_absmax", "nested_quant_map")
        members = (spec.name, *group.pick(*(f"{stem}.{suffix}" for suffix in suffixes)), state.name)
        try:
            settings = json_of(bytes(checkpoint.read(state.name).flatten().tolist()))
            codec = Bnb4(
                spec.name,
                tuple(int(side) for side in settings["shape"]),
                members,
                kind,
                int(settings["blocksize"]),
                int(settings.get("nested_blocksize", 1)),
                float(settings.get("nested_offset", 0.0)),
            )
            if min(codec.blocksize, codec.nested_blocksize) < 1:
                raise ValueError("blocks without entries")
        except (ValueError, TypeError, KeyError, OverflowError) as error:
            yield Refused(members, f"a bitsandbytes state that does not say its shape ({error}); save the model again")
            continue
        if kind in ("nf4", "fp4") and prod(spec.shape) * 2 * _bytes_of(spec) >= prod(codec.shape) > 0:
            yield Read(spec.name, members, codec)
        else:
            yield Refused(members, f"bitsandbytes {kind} codes of shape {spec.shape} for a weight of {codec.shape}")


def _bytes_of(spec: TensorSpec) -> int:
    """Bytes an entry: the codes may be stored as wider words (`bnb_4bit_quant_storage`)."""
    return max(1, spec.nbytes // max(1, spec.numel))


def find_mxfp4(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """Pairs `…_blocks`, `…_scales` of gpt-oss."""
    del checkpoint
    for leaf, spec in group.leaves.items():
        stem = leaf.removesuffix("_blocks")
        scale = group.leaves.get(f"{stem}_scales")
        if stem == leaf or scale is None:
            continue
        members, name = (spec.name, scale.name), group.named(stem)
        if len(spec.shape) == 4 and scale.shape == spec.shape[:3] and spec.shape[3] == 16 and spec.dtype == "U8":
            E, out, groups, _ = spec.shape
            yield Read(name, members, Mxfp4(name, (E, groups * 32, out), members))
        else:
            why = f"blocks of shape {spec.shape} with scales of shape {scale.shape}, a layout not known here"
            yield Refused(members, f"{why}; audit the model before quantization")
