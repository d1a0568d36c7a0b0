"""GPTQ and AWQ: integers of a few bits packed into 32-bit words.

GPTQ (Frantar et al. 2022, layout of AutoGPTQ): `qweight` (in·bits/32 × out) packs along the input, `qzeros`
(groups × out·bits/32) along the output, both as one little-endian bit stream; `scales` (groups × out);
`g_idx` (in) is each input's group. Format v1 stores zero − 1, v2 (`checkpoint_format: gptq_v2`) the zero
itself. AWQ (Lin et al. 2023, layout `gemm`): `qweight` (in × out/8) and `qzeros` (groups × out/8) pack along
the output, eight to a word in the order 0, 2, 4, 6, 1, 3, 5, 7. W[o, i] = scale[g(i), o] · (q[i, o] −
zero[g(i), o]) in both.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.checkpoints.readings.claim import Claim, Read, Refused, Siblings

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint, TensorSpec

_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # nibble j of a word holds output 8·word + _AWQ_ORDER[j]


@dataclass(frozen=True)
class Gptq:
    """One GPTQ weight, decoded to (out × in)."""

    module: str
    shape: tuple[int, ...]
    members: tuple[str, ...]  # qweight, scales, and qzeros and g_idx where there are any
    bits: int
    zero_offset: int  # added to stored zeros: 1 in format v1
    by_rows: bool = False  # the output axis is the columns of what is stored

    @property
    def dtype(self) -> str:
        """`GPTQ_INT4` and the like."""
        return f"GPTQ_INT{self.bits}"

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of W, float32."""
        import torch

        out, inputs = self.shape
        codes = unpack_words(checkpoint.read(f"{self.module}.qweight"), self.bits, inputs)  # in × out
        scales = checkpoint.read(f"{self.module}.scales").to(torch.float32)  # groups × out
        zeros = torch.full_like(scales, 2.0 ** (self.bits - 1))
        if f"{self.module}.qzeros" in self.members:
            packed = checkpoint.read(f"{self.module}.qzeros")
            stored = unpack_words(packed.T, self.bits, out).T
            # A zero of 0 is stored as −1 and wraps, so the sum wraps back.
            zeros = ((stored + self.zero_offset) & (2**self.bits - 1)).to(torch.float32)
        if f"{self.module}.g_idx" in self.members:
            groups = checkpoint.read(f"{self.module}.g_idx").to(torch.int64)
        else:
            groups = torch.arange(inputs) // -(-inputs // scales.shape[0])
        weight = (codes.to(torch.float32) - zeros[groups]) * scales[groups]
        return weight.T[start:stop].contiguous()


@dataclass(frozen=True)
class Awq:
    """One AWQ weight, decoded to (out × in)."""

    module: str
    shape: tuple[int, ...]
    members: tuple[str, ...]
    dtype: str = "AWQ_INT4"
    by_rows: bool = False

    def rows(self, checkpoint: Checkpoint, start: int, stop: int) -> torch.Tensor:
        """Rows of W, float32."""
        import torch

        scales = checkpoint.read(f"{self.module}.scales").to(torch.float32)  # groups × out
        zeros = _awq_nibbles(checkpoint.read(f"{self.module}.qzeros"))
        codes = _awq_nibbles(checkpoint.read(f"{self.module}.qweight"))  # in × out
        size = -(-self.shape[1] // scales.shape[0])
        groups = torch.arange(self.shape[1]) // size
        weight = (codes - zeros[groups]).to(torch.float32) * scales[groups]
        return weight.T[start:stop].contiguous()


def unpack_words(words: torch.Tensor, bits: int, count: int) -> torch.Tensor:
    """Integers (count × n) from a bit stream along the first axis of int32 words (count·bits/32 × n).

    Entry i is bits i·bits … (i+1)·bits − 1 of the stream, lowest first; 3-bit entries straddle words.
    """
    import torch

    stream = words.to(torch.int64) & 0xFFFFFFFF  # (K, n), unsigned
    at = torch.arange(count, dtype=torch.int64) * bits
    word, shift = at // 32, (at % 32)[:, None]
    following = (word + 1).clamp(max=stream.shape[0] - 1)
    both = stream[word] | (stream[following] << 32)
    # The shift keeps the sign bit of the upper word away: bits + shift ≤ 39 < 63.
    entries: torch.Tensor = (both >> shift) & (2**bits - 1)
    return entries.to(torch.int32)


def _awq_nibbles(words: torch.Tensor) -> torch.Tensor:
    """int32 (r × c) → integers (r × 8c) in the order of the outputs."""
    import torch

    shifts = torch.tensor([4 * _AWQ_ORDER.index(column) for column in range(8)], dtype=torch.int32)
    return ((words[:, :, None] >> shifts) & 15).reshape(words.shape[0], -1)


def find_gptq(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """A weight stored as GPTQ: the scales are as wide as `qweight`."""
    code, scales = _quantized(group), group.leaves.get("scales")
    if code is None or scales is None or len(scales.shape) != 2 or scales.shape[1] != code.shape[1]:
        return
    settings = _settings(checkpoint)
    # AutoRound's own packings store zeros as they are, too.
    own = settings.get("packing_format") in ("auto_round", "auto_round:gptqmodel")
    offset = 0 if settings.get("checkpoint_format") == "gptq_v2" or own else 1
    index, zeros = group.leaves.get("g_idx"), group.leaves.get("qzeros")
    bits = _bits(code, index, zeros, settings)
    members = group.pick("qweight", "qzeros", "scales", "g_idx")
    shape = (code.shape[1], code.shape[0] * 32 // bits) if bits else (0, 0)
    if bits in (2, 3, 4, 8) and _gptq_fits(shape, scales, index, zeros, bits):
        codec = Gptq(group.module, shape, members, bits, offset)
        yield Read(group.named("weight"), members, codec)
    else:
        why = (
            f"words of shape {code.shape} with scales of shape {scales.shape}, a layout of GPTQ that is not known here"
        )
        yield Refused(members, f"{why}; audit the model before quantization")


def _gptq_fits(
    shape: tuple[int, int], scales: TensorSpec, index: TensorSpec | None, zeros: TensorSpec | None, bits: int
) -> bool:
    out, inputs = shape
    groups = scales.shape[0]
    index_fits = index is None or index.shape in ((inputs,), (0,))
    zeros_fit = zeros is None or zeros.shape == (groups, out * bits // 32)
    return 0 < groups <= inputs and index_fits and zeros_fit


def find_awq(group: Siblings, checkpoint: Checkpoint) -> Iterator[Claim]:
    """A weight stored as AWQ `gemm`: the scales are eight times as wide as `qweight`."""
    del checkpoint
    code, zeros, scales = _quantized(group), group.leaves.get("qzeros"), group.leaves.get("scales")
    if code is None or scales is None or zeros is None or len(scales.shape) != 2 or len(zeros.shape) != 2:
        return
    if scales.shape[1] != 8 * code.shape[1]:
        return
    members = group.pick("qweight", "qzeros", "scales")
    if zeros.shape != (scales.shape[0], code.shape[1]) or not 0 < scales.shape[0] <= code.shape[0]:
        why = f"words of shape {code.shape} with scales of shape {scales.shape}, a layout of AWQ that is not known here"
        yield Refused(members, f"{why}; audit the model before quantization")
        return
    yield Read(group.named("weight"), members, Awq(group.module, (scales.shape[1], code.shape[0]), members))


def _quantized(group: Siblings) -> TensorSpec | None:
    code = group.leaves.get("qweight")
    return code if code is not None and code.dtype == "I32" and len(code.shape) == 2 else None


def _bits(code: TensorSpec, index: TensorSpec | None, zeros: TensorSpec | None, settings: Mapping[str, Any]) -> int:
    """Bits per entry: from the shapes where they tell, since mixed models override the config per module."""
    if index is not None and index.shape[0]:
        return code.shape[0] * 32 // index.shape[0]
    if zeros is not None and code.shape[1]:
        return zeros.shape[1] * 32 // code.shape[1]
    bits = settings.get("bits", 0)
    return bits if isinstance(bits, int) else 0


def _settings(checkpoint: Checkpoint) -> Mapping[str, Any]:
    settings = checkpoint.config.get("quantization_config")
    return settings if isinstance(settings, Mapping) else {}
