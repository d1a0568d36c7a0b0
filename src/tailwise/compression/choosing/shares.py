"""From a metric to shares in [1 − τ, 1 + τ], and from shares to amounts, by block, by matrix, or by both."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tailwise.compression.choosing.amounts import AllocatorSettings, means_by_block, ordinal, sizes_of, verdict
from tailwise.compression.plans.budget import MOST, Budget, Vector
from tailwise.compression.plans.candidates import Candidate


@dataclass(frozen=True)
class MeasuredMetric:
    """A metric of every candidate, and which way it points."""

    symbol: str  # as reasons name it: α
    values: Vector  # (n,), NaN where the metric is not defined
    direction: int  # +1: more where the value is high


def shares(values: Vector, tau: float, direction: int) -> Vector:
    """r = (v − v_min)/(v_max − v_min)·2τ + (1 − τ), (n,); mirrored for direction −1.

    NaN (no value) gets the neutral 1, and so does everything where all values are equal.
    """
    spread = np.ones_like(values)
    known = np.isfinite(values)
    if not known.any():
        return spread
    low, high = float(values[known].min()), float(values[known].max())
    if high > low:
        place = (values[known] - low) / (high - low)
        spread[known] = (place if direction > 0 else 1.0 - place) * 2.0 * tau + (1.0 - tau)
    return spread


def spread(
    candidates: Sequence[Candidate], measured: MeasuredMetric, budget: Budget, settings: AllocatorSettings
) -> tuple[Vector, tuple[str, ...]]:
    """Amounts and reasons under `settings.mapping`."""
    ways: Mapping[str, Callable[..., Vector]] = {"block": _by_block, "matrix": _by_matrix, "mixed": _mixed}
    amounts = ways[settings.mapping](candidates, measured, budget, settings.tau)
    return amounts, _reasons(candidates, measured, amounts, (budget.sparsity, settings.mapping))


def _by_matrix(candidates: Sequence[Candidate], measured: MeasuredMetric, budget: Budget, tau: float) -> Vector:
    return budget.scaled(shares(measured.values, tau, measured.direction), sizes_of(candidates))


def _by_block(candidates: Sequence[Candidate], measured: MeasuredMetric, budget: Budget, tau: float) -> Vector:
    means = means_by_block(candidates, measured.values)
    values = [
        means.get(item.block, np.nan) if item.block is not None and np.isfinite(own) else np.nan
        for item, own in zip(candidates, measured.values, strict=True)
    ]
    return budget.scaled(shares(np.array(values), tau, measured.direction), sizes_of(candidates))


def _mixed(candidates: Sequence[Candidate], measured: MeasuredMetric, budget: Budget, tau: float) -> Vector:
    """The block's mean sets what the block gives; inside it, each matrix's own value splits that."""
    means = means_by_block(candidates, measured.values)
    keys = list(dict.fromkeys(item.block for item in candidates))
    members = {key: np.array([i for i, item in enumerate(candidates) if item.block == key]) for key in keys}
    sizes = sizes_of(candidates)
    totals = np.array([sizes[members[key]].sum() for key in keys])
    centres = np.array([np.nan if key is None else means.get(key, np.nan) for key in keys])
    budgets = budget.scaled(shares(centres, tau, measured.direction), totals)
    amounts = np.empty(len(candidates))
    for key, part in zip(keys, budgets, strict=True):
        inside = members[key]
        own = shares(measured.values[inside], tau, measured.direction)
        if budget.clamp:
            # Shares of zero (τ = 1) could leave a block unable to give its part.
            own = np.maximum(own, 1e-6) if part > MOST * sizes[inside][own > 0].sum() / sizes[inside].sum() else own
            amounts[inside] = Budget(min(float(part), MOST)).scaled(own, sizes[inside])
        else:
            amounts[inside] = own * (part * sizes[inside].sum() / float(own @ sizes[inside]))
    return amounts


def _reasons(
    candidates: Sequence[Candidate], measured: MeasuredMetric, amounts: Vector, how: tuple[float, str]
) -> tuple[str, ...]:
    asked, mapping = how
    means = means_by_block(candidates, measured.values)
    falling = sorted(means.values(), reverse=True)
    by_value = sorted((value for value in measured.values if np.isfinite(value)), reverse=True)
    reasons = []
    for item, own, amount in zip(candidates, measured.values, amounts, strict=True):
        ends = verdict(float(amount), asked) + (f", cut at {MOST}" if amount >= MOST - 1e-12 else "")
        if not np.isfinite(own):
            reasons.append(f"no {measured.symbol} (the tail has no spread), so a neutral share: {ends}")
            continue
        of_block = ""
        if item.block in means:
            mean = means[item.block]
            of_block = f"{measured.symbol} {mean:.3g}, the {ordinal(falling.index(mean) + 1)} of {len(means)} blocks"
        of_matrix = f"own {measured.symbol} {own:.3g}, the {ordinal(by_value.index(own) + 1)} of {len(by_value)}"
        parts = {"block": [of_block], "matrix": [of_matrix], "mixed": [of_block, of_matrix]}[mapping]
        reasons.append(f"{'; '.join(part for part in parts if part) or 'outside the blocks'}: {ends}")
    return tuple(reasons)
