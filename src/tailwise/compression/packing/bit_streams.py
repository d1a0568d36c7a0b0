"""Codes of a few bits side by side, lowest bit first."""

from __future__ import annotations

import torch

#: Codes that are worked on at once: eight bytes each in between.
_CHUNK = 1 << 22


def pack_bits(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Codes (rows, n) of `bits` bits, uint8, to one stream a row: (rows, ⌈n·bits/8⌉) bytes, uint8.

    Code i is bits i·bits … (i+1)·bits − 1 of its row.
    """
    if bits == 8:
        return codes
    rows = max(1, _CHUNK // max(codes.shape[1], 1))
    return torch.cat([_packed(codes[start : start + rows], bits) for start in range(0, len(codes), rows)])


def _packed(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Eight codes make `bits` bytes."""
    rows, count = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -count % 8)).reshape(rows, -1, 8)
    word = torch.zeros(padded.shape[:2], dtype=torch.int64, device=codes.device)
    for place in range(8):
        word |= padded[..., place].to(torch.int64) << (place * bits)
    octets = torch.stack([((word >> (8 * place)) & 255).to(torch.uint8) for place in range(bits)], dim=-1)
    return octets.reshape(rows, -1)[:, : -(-count * bits // 8)]


def pack_words(codes: torch.Tensor, bits: int) -> torch.Tensor:
    """Signed codes (rows, n), int8, to int32 words, (rows, ⌈n·bits/32⌉), the least code stored as zero."""
    stream = pack_bits((codes.to(torch.int16) + 2 ** (bits - 1)).to(torch.uint8), bits)
    whole = stream.new_zeros(len(stream), stream.shape[1] + -stream.shape[1] % 4)
    whole[:, : stream.shape[1]] = stream
    return whole.view(torch.int32)
