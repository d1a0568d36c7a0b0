"""By α against noise, within each role."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tailwise.compression.choosing.amounts import (
    Allocation,
    AllocatorSettings,
    allocator,
    means_by_block,
    sizes_of,
    values_of,
    verdict,
)
from tailwise.compression.choosing.signs import reversed_of, sign_of_alpha
from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.candidates import Candidate


@allocator("alpha-role", source="this project; a heuristic", takes=("tau", "reverse"))
def alpha_role(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """α against its random baseline, ranked within each role, times a block term. Our own heuristic.

    u ∈ [−1, 1] is the rank of −`alpha_hill_z` among the matrices of a role: +1 is the nearest to noise. ū is the
    mean of u over a block. The share is (1 + τu/2)(1 + τū/2), so that a matrix counts twice where its whole block
    agrees. Roles are never compared with each other, since q and k have the lowest α and spare the most; the
    baseline takes out what only the shape does. Nothing published stands behind the product.
    """
    likeness = -values_of(candidates, "alpha_hill_z")  # high: near noise, as a high α
    ranks = np.zeros(len(candidates))
    for role in {item.role for item in candidates}:
        members = np.array([i for i, item in enumerate(candidates) if item.role == role])
        ranks[members] = _centred_ranks(likeness[members])
    ranks *= settings.direction
    known = np.where(np.isfinite(likeness), ranks, np.nan)
    blocks = means_by_block(candidates, known)
    term = np.array([0.0 if item.block is None else blocks.get(item.block, 0.0) for item in candidates])
    half = settings.tau / 2
    shares = np.where(np.isfinite(likeness), (1 + half * ranks) * (1 + half * term), 1.0)
    amounts = budget.scaled(shares, sizes_of(candidates))
    counts = {item.role: sum(other.role == item.role for other in candidates) for item in candidates}
    reasons = tuple(
        _reason(item, float(z), counts[item.role]) + f": {verdict(float(amount), budget.sparsity)}"
        for item, z, amount in zip(candidates, -likeness, amounts, strict=True)
    )
    used = {"tau": settings.tau, **reversed_of(settings)}
    return Allocation(amounts, reasons, ("alpha_hill_z", "alpha_hill"), used, sign=sign_of_alpha(settings))


def _reason(item: Candidate, z: float, count: int) -> str:
    if not np.isfinite(z):
        return "no α against noise, so a neutral share"
    return f"{z:.1f} sd heavier-tailed than noise, ranked among {count} of role {item.role}"


def _centred_ranks(values: Vector) -> Vector:
    """Ranks of the finite values on [−1, 1], ties shared; 0 for NaN and for a single value."""
    from scipy.stats import rankdata

    centred = np.zeros_like(values)
    known = np.isfinite(values)
    if known.sum() > 1:
        ranks = rankdata(values[known])
        centred[known] = 2.0 * (ranks - 1.0) / (known.sum() - 1.0) - 1.0
    return centred
