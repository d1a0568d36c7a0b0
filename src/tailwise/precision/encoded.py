"""A matrix as a number format holds it, on its way to the solver, with what the format did to it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from tailwise.number_formats.number_format import NumberFormat, Reach
from tailwise.spectrum.solvers.blocks import DenseMatrix


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
            found = self._format.quantize(block, self._reach)
            if not counted:
                self.damage.add(_damage(block, found.values, found.overflow, found.underflow))
            yield found.values
        self._passed = True

    def encode(self) -> Damage:
        """Go through the matrix for its damage alone."""
        for _ in self.row_blocks(4 << 20):
            pass
        return self.damage


def _damage(weights: torch.Tensor, values: torch.Tensor, overflow: int, underflow: int) -> Damage:
    dtype = torch.promote_types(values.dtype, torch.float32)
    exact = weights.to(dtype)
    error = torch.sub(values, exact)
    # Sums of a block in its own precision lose less than 1e-6; over blocks they are added in float64.
    return Damage(_squared(error), _squared(exact), overflow, underflow)


def _squared(block: torch.Tensor) -> float:
    flat = block.reshape(-1)
    return float(torch.dot(flat, flat))
