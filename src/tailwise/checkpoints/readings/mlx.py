"""MLX: groups of codes with a scale and a bias each, packed into 32-bit words along the input.

`weight` (out × in·bits/32, U32), `scales` and `biases` (out × in/group): W = scale · code + bias; entry i of a row is
bits
i·bits … (i+1)·bits − 1 of the row's words, lowest first. The modes mxfp4, mxfp8 and nvfp4 have no biases and scales of
one
byte. config.json names group size, bits and mode, for single modules too; without it the hidden size, or else MLX's
default group of 64, settles what the shapes leave open.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.checkpoint import dims_for
from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings
from tailwise.checkpoints.readings.four_bit import e2m1_values
from tailwise.checkpoints.readings.gptq_awq import unpack_words

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

MARKS = ("scales",)
_BITS = (2, 3, 4, 5, 6, 8)
_GROUPS = (64, 32, 128)  # in the order in which they are tried where nothing names the group
_MODES = {"mxfp4": (4, 32), "mxfp8": (8, 32), "nvfp4": (4, 16)}


@dataclass(frozen=True)
class Mlx:
    """One weight (…, out, in)."""

    shape: tuple[int, ...]
    codes: str
    scales: str
    biases: str | None
    bits: int
    group: int
    mode: str
    by_rows: bool = True

    @property
    def dtype(self) -> str:
        """`MLX_INT4` and the like."""
        return f"MLX_INT{self.bits}" if self.mode == "affine" else f"MLX_{self.mode.upper()}"

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows (or experts) start:stop, float32."""
        import torch

        words = checkpoint.read_rows(self.codes, start, stop).view(torch.int32)
        flat = words.reshape(-1, words.shape[-1])
        codes = unpack_words(flat.T, self.bits, self.shape[-1]).T.reshape(stop - start, *self.shape[1:])
        scales = checkpoint.read_rows(self.scales, start, stop)
        wide = _real_scales(scales, self.mode).repeat_interleave(self.group, -1)
        values = _elements(codes, self.mode) * wide
        if self.biases is not None:
            values += checkpoint.read_rows(self.biases, start, stop).to(torch.float32).repeat_interleave(self.group, -1)
        return values


def _real_scales(scales: torch.Tensor, mode: str) -> torch.Tensor:
    import torch

    if mode in ("mxfp4", "mxfp8"):
        return torch.exp2(scales.to(torch.float32) - 127)
    return scales.view(torch.float8_e4m3fn).to(torch.float32) if mode == "nvfp4" else scales.to(torch.float32)


def _elements(codes: torch.Tensor, mode: str) -> torch.Tensor:
    import torch

    if mode == "affine":
        return codes.to(torch.float32)
    if mode == "mxfp8":
        return codes.to(torch.uint8).view(torch.float8_e4m3fn).to(torch.float32)
    return e2m1_values(codes)


def find(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """A weight of words with `scales` beside it."""
    codes, scales, biases = (group.leaves.get(leaf) for leaf in ("weight", "scales", "biases"))
    if codes is None or scales is None or codes.dtype != "U32" or len(codes.shape) not in (2, 3):
        return
    members = group.pick("weight", "scales", "biases")
    settings = _settings(group.module, checkpoint.config)
    layout = _layout(group.named("weight"), codes, scales, settings, checkpoint.config)
    known = layout is not None and codes.shape[:-1] == scales.shape[:-1]
    if not known or layout is None or (biases is None) != (layout[2] != "affine"):
        yield Refused(
            members,
            f"32-bit words of shape {codes.shape} with scales of shape {scales.shape}, a layout of MLX that is not "
            "known here; keep config.json beside the weights, or audit the model before quantization",
        )
        return
    bits, size, mode, note = layout
    shape = (*codes.shape[:-1], scales.shape[-1] * size)
    codec = Mlx(shape, codes.name, scales.name, biases.name if biases else None, bits, size, mode)
    yield Read(group.named("weight"), members, codec, note)


def _settings(module: str, config: Mapping[str, Any]) -> Mapping[str, Any]:
    for key in ("quantization", "quantization_config"):
        settings = config.get(key)
        if isinstance(settings, Mapping) and ("group_size" in settings or "bits" in settings):
            own = settings.get(module)
            return {**settings, **own} if isinstance(own, Mapping) else settings
    return {}


def _layout(
    name: str, codes: TensorSpec, scales: TensorSpec, settings: Mapping[str, Any], config: Mapping[str, Any]
) -> tuple[int, int, str, str] | None:
    """(bits, group size, mode, note) that the shapes bear out, or None."""
    mode = str(settings.get("mode") or ("affine" if scales.dtype != "U8" else "mxfp4"))
    if mode != "affine":
        known, size = _MODES.get(mode, (0, 0))
        fits = known and scales.dtype == "U8" and codes.shape[-1] * 32 == scales.shape[-1] * size * known
        return (known, size, mode, "") if fits else None
    if scales.dtype not in ("F16", "BF16", "F32") or not scales.shape[-1]:
        return None
    product, rest = divmod(codes.shape[-1] * 32, scales.shape[-1])  # bits · group
    if rest:
        return None
    bits, group = settings.get("bits"), settings.get("group_size")
    if isinstance(bits, int) and isinstance(group, int) and bits * group == product and bits in _BITS:
        return bits, group, mode, ""
    options = [(product // g, g) for g in _GROUPS if product % g == 0 and product // g in _BITS]
    dims = dims_for(name, config)
    told = [(b, g) for b, g in options if scales.shape[-1] * g in {dims.hidden, *dims.inner}]
    if len(told) == 1:
        return *told[0], mode, ""
    note = f"config.json does not tell the group size: {options[0][1]}, the default, is assumed" if options else ""
    return (*options[0], mode, note) if options else None
