"""What an alarm rule sees: the last points of each layer, bounded, and what changed among them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from tailwise.diagnosis.statistics import robust_scale
from tailwise.history.point import Point

#: Points that are kept of each metric of each layer.
HISTORY = 40
#: Points between which a change is measured, so that one odd value is not a change of pace.
SPAN = 3


#: Norms that an audit has as logarithms of squares.
_LOGARITHMS = {"spectral_norm": "log_spectral_norm", "frobenius": "log_norm"}


def with_norms(point: Point) -> Point:
    """The point with `spectral_norm` and `frobenius` in every layer that an audit alone has measured."""
    layers = {}
    for layer, values in point.layers.items():
        missing = {norm: name for norm, name in _LOGARITHMS.items() if norm not in values and name in values}
        layers[layer] = {**values, **{norm: 10.0 ** (values[name] / 2) for norm, name in missing.items()}}
    return replace(point, layers=layers)


class Track:
    """The last values of one metric of one layer, with their steps, oldest first."""

    def __init__(self) -> None:
        self.steps: deque[int] = deque(maxlen=HISTORY)
        self.values: deque[float] = deque(maxlen=HISTORY)

    def add(self, step: int, value: float) -> None:
        """Take a value. Those of this step and later are dropped first: the run went back to a checkpoint."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.steps.append(step)
        self.values.append(value)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def last(self) -> float:
        """The newest value."""
        return self.values[-1]

    def ago(self, points: int) -> float:
        """The value so many points before the last, or the oldest there is."""
        return self.values[max(len(self.values) - 1 - points, 0)]


@dataclass(frozen=True)
class Change:
    """A change over the last SPAN points, beside those before it."""

    size: float
    z: float  # robust standard deviations from the median of the earlier changes


def change(track: Track, floor: float, fewest: int, scale: Callable[[float], float] = float) -> Change | None:
    """How much `scale(value)` changed over SPAN points; None with fewer than `fewest` changes before.

    The changes it is held against do not overlap with it. `floor` is their least scatter.
    """
    if len(track) < 2 * SPAN + fewest:
        return None
    values = [scale(value) for value in track.values]
    steps = [after - before for before, after in zip(values, values[SPAN:], strict=False)]
    middle, scatter = robust_scale(steps[:-SPAN], floor)
    return Change(steps[-1], (steps[-1] - middle) / scatter)


@dataclass
class Watch:
    """One run as the rules see it. Memory is bounded: HISTORY values of each metric that a rule needs."""

    metrics: frozenset[str]  # that are kept of layers
    scalars: frozenset[str]  # and of the whole model
    limits: Mapping[str, float]
    point: Point | None = None
    first_loss: float | None = None
    _tracks: dict[tuple[str, str], Track] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Take the next point. Values that are not finite are not kept."""
        self.point = point
        for layer, values in point.layers.items():
            self._add(layer, point.step, ((key, values[key]) for key in self.metrics & values.keys()))
        loss = point.scalars.get("loss", math.nan)
        if self.first_loss is None and math.isfinite(loss):
            self.first_loss = loss
        self._add("", point.step, ((key, point.scalars[key]) for key in self.scalars & point.scalars.keys()))

    def _add(self, layer: str, step: int, values: Iterable[tuple[str, float]]) -> None:
        for key, value in values:
            if math.isfinite(value):
                self._tracks.setdefault((layer, key), Track()).add(step, value)

    def limit(self, name: str) -> float:
        """A threshold."""
        return self.limits[name]

    def now(self, *metrics: str) -> dict[str, tuple[Track, ...]]:
        """The layers of this point that have finite values of all these metrics, with their tracks."""
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        found = {}
        for layer, values in self.point.layers.items():
            if all(math.isfinite(values.get(key, math.nan)) for key in metrics):
                found[layer] = tuple(self._tracks[layer, key] for key in metrics)
        return found

    def scalar(self, name: str) -> Track | None:
        """A number of the whole model, if this point has a finite one."""
        assert self.point is not None  # noqa: S101
        return self._tracks["", name] if math.isfinite(self.point.scalars.get(name, math.nan)) else None

    def track(self, layer: str, metric: str) -> Track | None:
        """The track of a metric, if there is one."""
        return self._tracks.get((layer, metric))
