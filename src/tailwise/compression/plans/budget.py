"""How much is to go in all, and amounts per tensor that hold it exactly."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields

#: Most of a tensor that a plan may take: what is left must still be a matrix.
MOST = 0.99

Unit = Literal["share", "bits", "bytes", "rise"]

Vector = NDArray[np.float64]


@dataclass(frozen=True)
class Budget:
    """How much is to go, or to be spent, and in what it is counted.

    A share is the fraction of the candidates' parameters that goes: Σ s·d = share · Σ d. Bits are the mean of the
    planned tensors, scales counted; bytes are those of the whole model; a rise is of perplexity, as a fraction.
    """

    amount: float
    clamp: bool = True  # of a share: keep amounts in [0, MOST] and give what is cut off to the others
    unit: Unit = "share"

    def __post_init__(self) -> None:
        # What is not finite cannot be met, which is told below.
        check_fields(self, but=("amount",) if isinstance(self.amount, float) else ())
        if self.unit != "share":
            if not math.isfinite(self.amount) or self.amount <= 0:
                raise UsageError(f"a budget of {self.amount:g} cannot be met", fix="give a number above 0")
        elif not math.isfinite(self.amount) or not 0.0 <= self.amount <= MOST:
            hint = f"; {self.amount:g} % is {self.amount / 100:g}" if 2.0 <= self.amount <= 100.0 * MOST else ""
            raise UsageError(
                f"a sparsity of {self.amount:g} cannot be reached", fix=f"give a fraction from 0 to {MOST}{hint}"
            )

    @property
    def sparsity(self) -> float:
        """A share, by the name that allocators have for it."""
        return self.amount

    def scaled(self, shares: Vector, sizes: Vector) -> Vector:
        """Amounts η·share, η such that the budget holds; what passes `MOST` is cut there and the others take it over.

        `shares` (n,) are ≥ 0, `sizes` (n,) are parameter counts. This is water-filling: η grows until the sum holds.
        """
        goal = self.sparsity * float(sizes.sum())
        if goal == 0.0:
            return np.zeros_like(shares)
        free = shares > 0
        self._check_reach(float(sizes[free].sum()) / float(sizes.sum()))
        if not self.clamp:
            return shares * (goal / float(shares @ sizes))
        full = np.zeros(len(shares), dtype=bool)
        while True:
            rest = free & ~full
            eta = (goal - MOST * float(sizes[full].sum())) / max(
                float(shares[rest] @ sizes[rest]), np.finfo(float).tiny
            )
            over = rest & (shares * eta > MOST)
            if not over.any():
                return np.where(full, MOST, np.where(rest, shares * eta, 0.0))
            full |= over

    def shifted(self, levels: Vector, sizes: Vector) -> Vector:
        """Amounts level + c, c such that the budget holds; cut to [0, MOST], and the others take over what is cut."""
        goal = self.sparsity * float(sizes.sum())
        if not self.clamp:
            return levels + (goal - float(levels @ sizes)) / float(sizes.sum())
        low, high = -float(levels.max()), MOST - float(levels.min())  # all at 0, all at MOST
        for _ in range(80):
            middle = (low + high) / 2
            if float(np.clip(levels + middle, 0.0, MOST) @ sizes) < goal:
                low = middle
            else:
                high = middle
        amounts = np.clip(levels + high, 0.0, MOST)
        # Bisection finds who is cut; the others then hold the rest exactly.
        free = (amounts > 0.0) & (amounts < MOST)
        if free.any():
            amounts[free] += (goal - float(amounts @ sizes)) / float(sizes[free].sum())
        return np.clip(amounts, 0.0, MOST)

    def _check_reach(self, share: float) -> None:
        if self.clamp and self.sparsity > MOST * share + 1e-12:
            raise UsageError(
                f"a sparsity of {self.sparsity:g} cannot be reached: entries with {1 - share:.1%} of the parameters "
                "have a share of zero",
                fix=f"reachable: 0 to {MOST * share:.4f}; or a smaller --tau",
            )


def held(amounts: Vector, sizes: Vector) -> float:
    """Σ s·d / Σ d."""
    return float(amounts @ sizes) / float(sizes.sum())
