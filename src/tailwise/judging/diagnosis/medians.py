"""The tests that keep noise from being called a finding."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Trend:
    """Kendall's rank correlation with the order, one-sided."""

    tau: float
    p: float


def rising(values: Sequence[float]) -> Trend:
    """Whether values rise along their order; −values for falling."""
    test = stats.kendalltau(np.arange(len(values)), np.asarray(values), alternative="greater")
    tau, p = float(test.statistic), float(test.pvalue)
    return Trend(0.0, 1.0) if math.isnan(p) else Trend(tau, p)


def adjusted(p_values: Sequence[float]) -> list[float]:
    """P-values adjusted for being many (Benjamini & Hochberg 1995)."""
    if not p_values:
        return []
    return [float(p) for p in stats.false_discovery_control(np.asarray(p_values))]


def p_above(z: float) -> float:
    """Chance that a standard normal exceeds z."""
    return float(stats.norm.sf(z))


def robust_scale(values: Sequence[float], floor: float = 1e-9) -> tuple[float, float]:
    """Median, and the MAD scaled to a standard deviation, never below `floor`."""
    middle = median(values)
    return middle, max(1.4826 * median([abs(value - middle) for value in values]), floor)


def against_neighbours(values: Sequence[float], reach: int = 2) -> list[float]:
    """Each value less the median of its neighbours up to `reach` steps away, itself left out."""
    return [
        value - median([*values[max(index - reach, 0) : index], *values[index + 1 : index + 1 + reach]])
        for index, value in enumerate(values)
    ]
