"""A matrix as a number format holds it, on its way to the solver, with what the format did to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tailwise.number_formats.number_format import NumberFormat, Quantized, Reach, chunks
from tailwise.spectrum.solvers.gram import DenseMatrix

#: Sums of squares in float32 outside of this may have lost entries to underflow, or be infinite.
_SAFE = (1e-25, 1e35)


@dataclass
class Damage:
    """Sums over the entries of a matrix (or of several): enough for every measure of the weights."""

    error: float = 0.0  # Σ (ŵ − w)²
    norm: float = 0.0  # Σ w²
    overflow: int = 0
    underflow: int = 0

    def add(self, other: Damage) -> None:
        """Also count the entries of another matrix."""
        self.error += other.error
        self.norm += other.norm
        self.overflow += other.overflow
        self.underflow += other.underflow


class EncodedMatrix:
    """W (rows × cols, groups along the columns) encoded and decoded again, as `RowBlocks`.

    Encoded block by block as the solver asks, so that one copy of W is all that is held. `damage` is complete after
    the first pass.
    """

    def __init__(self, weights: torch.Tensor, number_format: NumberFormat, reach: Reach | None) -> None:
        self.rows, self.cols = weights.shape
        self.damage = Damage()
        self._weights, self._format, self._reach = weights, number_format, reach
        self._passed = False

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """Decoded rows."""
        counted = self._passed
        for block in DenseMatrix(self._weights).row_blocks(max_bytes):
            quantized = self._format.quantize(block, self._reach)
            if not counted:
                self.damage.add(_damage(block, quantized))
            yield quantized.values
        self._passed = True

    def encode(self) -> Damage:
        """Go through the matrix for its damage alone."""
        for _ in self.row_blocks(4 << 20):
            pass
        return self.damage


def _damage(weights: torch.Tensor, quantized: Quantized) -> Damage:
    dtype = torch.promote_types(quantized.values.dtype, torch.float32)
    damage = Damage(overflow=quantized.overflow, underflow=quantized.underflow)
    for before, after in zip(chunks(weights), chunks(quantized.values), strict=True):
        exact = before.to(dtype)
        damage.error += _squared(after - exact)
        damage.norm += _squared(exact)
    return damage


def _squared(chunk: torch.Tensor) -> float:
    """Σ x². A sum in float32 loses up to 2e-6 of a chunk; where squares leave its range, it is made in float64."""
    flat = chunk.reshape(-1)
    total = float(torch.dot(flat, flat))
    if not _SAFE[0] < total < _SAFE[1]:
        wide = flat.double()
        total = float(torch.dot(wide, wide))
    return total
