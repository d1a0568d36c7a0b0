"""Codes and scales in the blocks of 32 that llama.cpp reads."""

from __future__ import annotations

import torch

from tailwise.checkpoints.checkpoint import TensorSpec
from tailwise.compression.packing.tensor_parts import Coded, Parts, cast_of
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import NumberFormat

BLOCK = 32
#: Number format → name of llama.cpp's type.
TYPES = {
    "fp32": "F32", "fp16": "F16", "bf16": "BF16", "q4_0": "Q4_0", "q4_1": "Q4_1", "q5_0": "Q5_0", "q5_1": "Q5_1",
    "q8_0": "Q8_0", "mxfp4": "MXFP4",
}  # fmt: skip
_STORED = {"F32": "F32", "F16": "F16", "BF16": "BF16"}


def type_of(spec: TensorSpec, chosen: NumberFormat | None) -> str:
    """llama.cpp's type of a tensor: that of its format, or as it is stored; vectors are always float32."""
    if chosen is not None:
        return TYPES[chosen.name]
    return "F32" if len(spec.shape) < 2 else _STORED[spec.dtype]


def row_bytes(kind: str, columns: int) -> int:
    """Bytes of a row."""
    name = next(name for name, stored in TYPES.items() if stored == kind)
    return round(parse_format(name).bits_per_weight(1, columns) * columns / 8)


def to_bytes(values: torch.Tensor, kind: str, coded: Coded | None) -> torch.Tensor:
    """A tensor as llama.cpp stores it: uint8, the rows of the tensor by the bytes of a row."""
    if coded is not None and cast_of(coded.format) is None:
        return _blocks(coded.parts, coded.format.name)
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[kind]
    found = values.to(dtype).contiguous()
    return (found if found.ndim > 1 else found[None]).view(torch.uint8)


def _blocks(parts: Parts, name: str) -> torch.Tensor:
    """(out, groups · bytes of a block)."""
    out, groups = parts.scales.shape
    head = [_bytes(parts.scales)] if parts.lows is None else [_bytes(parts.scales), _bytes(parts.lows)]
    codes = parts.codes.reshape(out, groups, BLOCK)
    if name == "q8_0":
        return torch.cat([*head, codes.view(torch.uint8)], dim=-1).flatten(1)
    bits = 5 if name.startswith("q5") else 4
    if codes.dtype == torch.int8:  # the least code is stored as zero
        codes = (codes + 2 ** (bits - 1)).to(torch.uint8)
    if bits == 5:
        fifth = (codes >> 4).reshape(out, groups, 4, 8)
        weights = 2 ** torch.arange(8, dtype=torch.uint8)
        head.append((fifth * weights).sum(-1).to(torch.uint8))
    low = codes & 15
    halves = low[..., : BLOCK // 2] | (low[..., BLOCK // 2 :] << 4)  # entry i beside entry i + 16
    return torch.cat([*head, halves], dim=-1).flatten(1)


def _bytes(scales: torch.Tensor) -> torch.Tensor:
    """(out, groups, bytes of a scale)."""
    return scales.contiguous().view(torch.uint8).reshape(*scales.shape, -1)
