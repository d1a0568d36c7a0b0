"""Several indicators at once, with weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from tailwise.compression.choosing.amounts import Allocation, AllocatorSettings, allocator, sizes_of, verdict
from tailwise.compression.plans.budget import Budget, Vector
from tailwise.compression.plans.candidates import Candidate
from tailwise.core.errors import UsageError, unknown_name

#: What can be blended: name → metric of a candidate; "" for what is not one.
INDICATORS: Mapping[str, str] = {
    "alpha": "alpha", "alpha_hill": "alpha_hill", "entropy": "singular_entropy_normalized", "log_norm": "log_norm",
    "log_spectral_norm": "log_spectral_norm", "stable_rank": "stable_rank", "depth": "", "owl": "",
}  # fmt: skip


@allocator(
    "blend",
    source="this project; the blend of indicators that AlphaPruning leaves open, its weights searched on text",
    takes=("weights", "tau", "statistics"),
    needs_alpha=True,
)
def blend(candidates: Sequence[Candidate], budget: Budget, settings: AllocatorSettings) -> Allocation:
    """Shares 1 + τ·b in [1 − τ, 1 + τ], b the weighted mean of several indicators' ranks.

    The rank of a tensor among all of them is scaled to [−1, 1] for every indicator; b is Σ w·rank / Σ|w|. A weight
    above 0 takes more where the indicator is high, below 0 where it is low. With calibration text the weights are
    searched for; nothing published says what they should be.
    """
    weights = settings.weights
    if not weights or not any(weights.values()):
        raise UsageError(
            "a blend takes weights, and none are known",
            fix="give --calibration TEXT, on which they are searched, or --weights alpha=1,depth=0.5",
        )
    total = sum(abs(weight) for weight in weights.values())
    blended = np.zeros(len(candidates))
    for name, weight in sorted(weights.items()):
        blended += weight / total * _ranks(_values(name, candidates, settings))
    amounts = budget.scaled(1.0 + settings.tau * blended, sizes_of(candidates))
    words = ", ".join(f"{name} {weight:+.2g}" for name, weight in sorted(weights.items()) if weight)
    reasons = tuple(
        f"blend {own:+.2f} of {words}: {verdict(float(amount), budget.sparsity)}"
        for own, amount in zip(blended, amounts, strict=True)
    )
    used = tuple(metric for name in sorted(weights) if (metric := INDICATORS[name]))
    recorded = {"weights": {name: weights[name] for name in sorted(weights)}, "tau": settings.tau}
    return Allocation(amounts, reasons, used, recorded, sign=f"a blend of {words}: more where it is high")


def _values(name: str, candidates: Sequence[Candidate], settings: AllocatorSettings) -> Vector:
    if name not in INDICATORS:
        raise unknown_name("indicator", name, INDICATORS)
    if name == "depth":
        return np.array([np.nan if item.block is None else float(item.block) for item in candidates])
    if name == "owl":
        statistics = settings.statistics
        if statistics is None:
            raise UsageError("outliers are measured on text, and there is none", fix="give --calibration TEXT")
        return np.array([np.nan if item.block is None else statistics.get(item.block, np.nan) for item in candidates])
    values = [item.value(INDICATORS[name]) for item in candidates]
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)


def _ranks(values: Vector) -> Vector:
    """Ranks of the finite values on [−1, 1], ties shared; 0 for NaN and for a single value."""
    from scipy.stats import rankdata

    ranks = np.zeros_like(values)
    known = np.isfinite(values)
    if known.sum() > 1:
        ranks[known] = 2.0 * (rankdata(values[known]) - 1.0) / (known.sum() - 1.0) - 1.0
    return ranks
