"""Does alpha predict what a format does to a layer? Rank correlations for one model, beside the control "depth".

Pooled over roles a correlation mixes roles that differ in everything (Simpson's paradox). "Within roles" ranks the
layers of each role among themselves, centres and scales those ranks, and correlates them over all roles: a
stratified Spearman's ρ. Depth is the index of the block; a predictor that does no better than it is not needed.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, rankdata

from tailwise.audits.precision.study import FELT, LayerStudy, PrecisionStudy

Predictor = Literal["alpha", "depth"]
Scope = Literal["pooled", "within roles"]

#: Distortions that alpha is held against; counts are zero nearly everywhere.
PREDICTED = ("relative_error", "alpha_shift", "spectral_distance", "stable_rank_change", "overlap")
#: Below this many layers an interval says nothing.
FEWEST = 8


@dataclass(frozen=True)
class Prediction:
    """One rank correlation over the layers inside blocks. None where it is not defined."""

    predictor: Predictor
    measure: str
    format: str
    scope: Scope
    rho: float | None
    low: float | None  # 95 % interval
    high: float | None
    p: float | None  # two-sided
    n: int  # layers

    @property
    def seen(self) -> bool:
        """Whether the interval excludes 0."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)


def predictions(study: PrecisionStudy) -> tuple[Prediction, ...]:
    """Every predictor × measure × scope, for each format that changes the weights.

    Signs are of |measure| (of 1 − overlap): a positive ρ says that layers with a high predictor suffer more.
    """
    layers = [layer for layer in study if layer.block is not None and layer.alpha is not None]
    made = []
    for name in study.formats:
        for measure in PREDICTED:
            damage = {layer.name: _damage(layer, measure, name) for layer in layers}
            known = [layer for layer in layers if damage[layer.name] is not None]
            if not any(_felt(layer, name) for layer in known):
                continue
            values = np.array([damage[layer.name] for layer in known], dtype=np.float64)
            made += [_one(known, values, measure, name, how) for how in _HOW]
    return tuple(made)


def _felt(layer: LayerStudy, name: str) -> bool:
    """Whether the format changes the layer by more than the rounding of a few subnormal entries."""
    return (layer.readings[name].relative_error or 0.0) > FELT


def _damage(layer: LayerStudy, measure: str, name: str) -> float | None:
    reading = layer.readings.get(name)
    damage = None if reading is None else getattr(reading, measure)
    if damage is None:
        return None
    value = float(damage)
    return 1 - value if measure == "overlap" else abs(value)


def _alpha(layer: LayerStudy) -> float:
    return layer.alpha if layer.alpha is not None else math.nan


def _depth(layer: LayerStudy) -> float:
    return float(layer.block) if layer.block is not None else math.nan


_PREDICTORS: Mapping[Predictor, Callable[[LayerStudy], float]] = {"alpha": _alpha, "depth": _depth}
_HOW: Sequence[tuple[Predictor, Scope]] = (
    ("alpha", "pooled"), ("alpha", "within roles"), ("depth", "pooled"), ("depth", "within roles"),
)  # fmt: skip


def _one(
    layers: Sequence[LayerStudy], damage: NDArray[np.float64], measure: str, name: str, how: tuple[Predictor, Scope]
) -> Prediction:
    predictor, scope = how
    values = np.array([_PREDICTORS[predictor](layer) for layer in layers])
    strata = [layer.category if scope == "within roles" else "" for layer in layers]
    rho, low, high, p, n = stratified_spearman(values, damage, strata)
    return Prediction(predictor, measure, name, scope, rho, low, high, p, n)


Correlated = tuple[float | None, float | None, float | None, float | None, int]


def stratified_spearman(x: NDArray[np.float64], y: NDArray[np.float64], strata: Sequence[str]) -> Correlated:
    """(ρ, low, high, p, n) of ranks taken within each stratum; one stratum gives Spearman's ρ.

    Strata of fewer than three are left out. The interval is Fisher's with the variance of Bonett & Wright (2000),
    (1 + ρ²/2)/(ν − 3), where ν = n − (strata − 1): each further stratum costs a mean.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for index, stratum in enumerate(strata):
        groups[stratum].append(index)
    members = [np.array(indices) for indices in groups.values() if len(indices) >= 3]
    n = sum(len(indices) for indices in members)
    if not members:
        return None, None, None, None, n
    u, v = (np.concatenate([_centred(values[indices]) for indices in members]) for values in (x, y))
    scale = math.sqrt(float(u @ u) * float(v @ v))
    if scale == 0:
        return None, None, None, None, n
    rho = float(np.clip(float(u @ v) / scale, -1.0, 1.0))
    free = n - len(members) - 2
    if n < FEWEST or free < 1:
        return rho, None, None, None, n
    error = math.sqrt((1 + rho**2 / 2) / free)
    middle = math.atanh(min(max(rho, -1 + 1e-12), 1 - 1e-12))
    p = float(2 * norm.sf(abs(middle) * math.sqrt(free)))
    return rho, math.tanh(middle - 1.96 * error), math.tanh(middle + 1.96 * error), p, n


def _centred(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks in (−1/2, 1/2), whatever the size of the stratum."""
    ranks: NDArray[np.float64] = rankdata(values)
    return (ranks - (len(values) + 1) / 2) / len(values)
