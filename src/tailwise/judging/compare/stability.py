"""How stable the order of models is: over which layers they have, by role, and by which number orders them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import estimator_of, usable, value_of

_DRAWS = 500
_SEED = 20260729
#: Below this share of resamples with the same order of two neighbours, the order is not said to be one: a convention.
SURE = 0.95
#: Fewest layers with a value on each side for a resample to mean something.
_LEAST = 3


@dataclass(frozen=True)
class Stability:
    """Of a ranking by the mean of one metric."""

    first: Mapping[str, float]  # model → share of the resamples in which it comes first
    neighbours: tuple[float, ...]  # of each two that follow one another: share of the resamples in that order
    roles: Mapping[str, float | None]  # role → Kendall's τ of its order with the whole one
    metrics: Mapping[str, float | None]  # number → the same, of the order by another number

    @property
    def sure(self) -> bool:
        """Whether the first model is first in nearly every resample."""
        return max(self.first.values(), default=0.0) >= SURE


def values_by_layer(audit: Audit, summary: str, least: int | None = None) -> dict[str, tuple[str, float]]:
    """Layer → (role, value) that the mean `summary` (`mean_alpha`, `mean_log_norm_all`, …) is of."""
    metric, kind = summary.removeprefix("mean_").removesuffix("_all"), estimator_of(audit)

    def value(row: LayerRow) -> float | None:
        return value_of(row, metric) if summary.endswith("_all") else usable(row, metric, kind, least)

    rows = [layer.row for layer in audit if layer.row.status != "DEGENERATE"]
    return {row.name: (row.role, number) for row in rows if (number := value(row)) is not None}


def stability(
    models: Sequence[str],
    layers: Sequence[Mapping[str, tuple[str, float]]],
    numbers: Mapping[str, Sequence[float | None]],
) -> Stability | None:
    """Of models in their order (smallest mean first), with the values of their layers.

    Layers of one name are drawn together, as they are pairs; a model is drawn by itself where names differ.
    `numbers` are other numbers of the models, in the same order. None where a model has too few values.
    """
    if len(models) < 2 or any(len(one) < _LEAST for one in layers):
        return None
    means = _resampled(layers)  # (draws, models)
    first = np.bincount(means.argmin(axis=1), minlength=len(models)) / len(means)
    pairs = tuple(float(np.mean(means[:, i] <= means[:, i + 1])) for i in range(len(models) - 1))
    return Stability(
        {name: float(share) for name, share in zip(models, first, strict=True)}, pairs, _by_role(layers),
        {name: _agreement(values) for name, values in numbers.items()},
    )  # fmt: skip


def _resampled(layers: Sequence[Mapping[str, tuple[str, float]]]) -> NDArray[np.float64]:
    rng = np.random.default_rng(_SEED)
    common = [name for name in layers[0] if all(name in other for other in layers[1:])]
    if len(common) >= _LEAST and all(len(common) >= 0.8 * len(one) for one in layers):
        table = np.array([[one[name][1] for name in common] for one in layers])  # (models, layers)
        drawn = rng.integers(0, len(common), (_DRAWS, len(common)))
        return np.asarray(table[:, drawn].mean(axis=2).T)
    means = []
    for one in layers:
        values = np.array([value for _, value in one.values()])
        means.append(values[rng.integers(0, len(values), (_DRAWS, len(values)))].mean(axis=1))
    return np.stack(means, axis=1)


def _by_role(layers: Sequence[Mapping[str, tuple[str, float]]]) -> dict[str, float | None]:
    """τ of the order by each role that every model has."""
    means = []
    for one in layers:
        of: dict[str, list[float]] = {}
        for role, value in one.values():
            of.setdefault(role, []).append(value)
        means.append({role: float(np.mean(values)) for role, values in of.items()})
    shared = [role for role in means[0] if all(role in other for other in means[1:])]
    return {role: _agreement([one[role] for one in means]) for role in shared}


def _agreement(values: Sequence[float | None]) -> float | None:
    """Kendall's τ_a of values with the places that they stand at; None where one is missing."""
    known = [value for value in values if value is not None]
    if len(known) < len(values) or len(known) < 2:
        return None
    i, j = np.triu_indices(len(known), 1)
    array = np.array(known)
    return float(np.sign(array[j] - array[i]).mean())
