"""What the rows and columns of a matrix say that its spectrum does not, summed while its blocks go by.

Training gives rows and columns sizes of their own. Where those are as even as the same entries in random order would
be, nothing says that the entries stand where they stand for a reason.
"""

from __future__ import annotations

import math

import torch

#: A row or column whose norm is below this share of their root mean square is of next to nothing.
WEAK = 1e-3
#: Fewer groups say nothing about their scatter.
_LEAST_GROUPS = 8
#: Entries that a core keeps near itself while it sums them in six ways.
_TILE = 64 << 10


class Entries:
    """Sums over the rows and columns of one matrix, given as blocks (depth × m) of its long side."""

    def __init__(self) -> None:
        self._short: torch.Tensor | None = None  # of each vector of the short side: Σw, Σ|w|, (2, m)
        self._long: list[torch.Tensor] = []  # of the others: Σw, Σ|w|, Σw², (3, depth)

    def add(self, block: torch.Tensor) -> None:
        """The next block, (depth × m), in any floating type and on any device."""
        values = block if block.dtype in (torch.float64, torch.float32) else block.to(torch.float32)
        along_rows = values.stride(1) == 1
        lines, across = _sums(values if along_rows else values.T)
        long, short = (lines, across[:2]) if along_rows else (across, lines[:2])
        self._short = short if self._short is None else self._short + short
        self._long.append(long)

    def order_z(self, energies: torch.Tensor) -> float | None:
        """How far rows and columns are from those of the same entries in random order, in standard deviations.

        One-way analyses of variance of w and of |w|, over rows and over columns; the largest |z| of the four.
        `energies` are Σw² of the short side's vectors, (m,). None where the matrix is too small, constant or out of
        range.
        """
        if self._short is None:
            return None
        short = self._short.cpu()
        sums, sizes = (torch.cat([part[index] for part in self._long]).cpu() for index in (0, 1))
        count, total = len(sums) * short.shape[1], float(energies.sum())
        found = [
            _z_of_groups(groups / (count / len(groups)), count // len(groups), total / count)
            for groups in (short[0], sums, short[1], sizes)
        ]
        known = [abs(z) for z in found if z is not None]
        return max(known) if len(known) == len(found) else None

    def weak_vectors(self, energies: torch.Tensor) -> int:
        """Directions that rows and columns of next to nothing take. `energies`: Σw² of the short side's, (m,)."""
        short = energies.to("cpu", torch.float64).clamp_min(0).sqrt()
        long = torch.cat([part[2] for part in self._long]).cpu().sqrt()
        strong = int((long > _edge(long)).sum())
        return max(int((short <= _edge(short)).sum()), len(short) - strong)


def _sums(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Σw, Σ|w| and Σw² of every row, (3, r), and of every column, (3, c), in float64."""
    rows: list[torch.Tensor] = []
    columns = torch.zeros(3, values.shape[1], dtype=torch.float64, device=values.device)
    step = len(values) if values.device.type != "cpu" else max(1, _TILE // values.shape[1])
    for start in range(0, len(values), step):
        tile = values[start : start + step]
        forms = (tile, tile.abs(), tile.square())
        rows.append(torch.stack([form.sum(1) for form in forms]))
        columns += torch.stack([form.sum(0) for form in forms])
    return torch.cat(rows, 1).double(), columns


def _edge(norms: torch.Tensor) -> float:
    # Not of the median: in a layer of which most is dead, that is next to nothing itself.
    return WEAK * float(norms.square().mean().sqrt())


def _z_of_groups(means: torch.Tensor, size: int, square: float) -> float | None:
    """How unusual the scatter of means of `size` entries each is, as a normal deviate.

    `square` is the mean square of all entries. F = size · Σ(means − mean)² / ((k−1) · variance) is χ² over its degrees
    of freedom k − 1 where entries are exchangeable; its cube root is normal (Wilson & Hilferty 1931, PNAS 17:684).
    """
    groups, centre = len(means) - 1, float(means.mean())
    variance = square - centre**2
    if groups + 1 < _LEAST_GROUPS or not math.isfinite(variance) or variance <= 1e-12 * square:
        return None
    ratio = size * float(((means - centre) ** 2).sum()) / groups / variance
    spread = 2 / (9 * groups)
    return (ratio ** (1 / 3) - (1 - spread)) / math.sqrt(spread) if math.isfinite(ratio) else None
