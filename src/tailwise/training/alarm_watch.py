"""What an alarm rule sees: the last points of each layer, bounded, and what changed among them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache

from tailwise.checkpoints.roles import classify
from tailwise.history.point import Point, Tempo
from tailwise.judging.diagnosis.medians import robust_scale

#: Points that are kept of each metric of each layer.
HISTORY = 40
#: Points between which a change is measured, so that one odd value is not a change of pace.
SPAN = 3
_LARGEST = 600.0  # of a logarithm, before its power leaves float64


_OUTSIDE = frozenset({"embed", "pos_embed", "codebook", "lm_head", "classifier", "patch_out", "regressor"})
#: Norms that an audit has as logarithms of squares.
_LOGARITHMS = {"spectral_norm": "log_spectral_norm", "frobenius": "log_norm"}


def with_norms(point: Point) -> Point:
    """The point with `spectral_norm` and `frobenius` in every layer that has them under another name.

    Null, as a stored point has it for what is not finite, becomes NaN.
    """
    layers = {layer: _with_norms(_numbers(values)) for layer, values in point.layers.items()}
    return replace(point, layers=layers, scalars=_numbers(point.scalars))


def _numbers(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: math.nan if value is None else value for name, value in values.items()}


def _with_norms(values: Mapping[str, float]) -> Mapping[str, float]:
    found = {"frobenius": values["frobenius_norm"]} if "frobenius_norm" in values else {}
    for norm, name in _LOGARITHMS.items():
        if name in values and values[name] < _LARGEST:
            found.setdefault(norm, 10.0 ** (values[name] / 2))
    return {**found, **values}


class Track:
    """The last values of one metric of one layer, with their steps, oldest first."""

    def __init__(self) -> None:
        self.steps: deque[int] = deque(maxlen=HISTORY)
        self.values: deque[float] = deque(maxlen=HISTORY)

    def add(self, step: int, value: float) -> None:
        """Take a value of a later step."""
        self.steps.append(step)
        self.values.append(value)

    def rewind(self, step: int) -> None:
        """Forget this step and later ones."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()

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
class RecentChange:
    """A change over the last SPAN points, beside those before it."""

    size: float
    z: float  # robust standard deviations from the median of the earlier changes


def change(track: Track, floor: float, fewest: int, scale: Callable[[float], float] = float) -> RecentChange | None:
    """How much `scale(value)` changed over SPAN points; None with fewer than `fewest` changes before.

    The changes it is held against do not overlap with it. `floor` is their least scatter.
    """
    if len(track) < 2 * SPAN + fewest:
        return None
    values = [scale(value) for value in track.values]
    steps = [after - before for before, after in zip(values, values[SPAN:], strict=False)]
    middle, scatter = robust_scale(steps[:-SPAN], floor)
    return RecentChange(steps[-1], (steps[-1] - middle) / scatter)


@lru_cache(maxsize=1 << 16)
def _outside(layer: str) -> bool:
    return classify(layer, 2, {}).role in _OUTSIDE


@dataclass
class AlarmWatch:
    """One run as the rules see it. Memory is bounded: HISTORY values of each metric that a rule needs.

    Cheap and full points are kept apart: a full point may come after cheap points of later steps, and a norm by power
    iteration is not quite that of the spectrum.
    """

    metrics: frozenset[str]  # that are kept of layers
    scalars: frozenset[str]  # and of the whole model
    limits: Mapping[str, float]
    point: Point | None = None
    first_loss: float | None = None
    _tracks: dict[tuple[Tempo, str, str], Track] = field(default_factory=dict)
    _latest: dict[Tempo, int] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Take the next point. Values that are not finite are not kept.

        A step that is not later than the last of its tempo: the run went back to a checkpoint, and what came after it
        is forgotten.
        """
        self.point = point
        if point.step <= self._latest.get(point.tempo, -1):
            for track in self._tracks.values():
                track.rewind(point.step)
            # Once for both tempos: a full point of this step comes after cheap ones of later steps, which stay.
            self._latest = {tempo: min(latest, point.step - 1) for tempo, latest in self._latest.items()}
        self._latest[point.tempo] = point.step
        for layer, values in point.layers.items():
            self._add(layer, point.step, ((key, values[key]) for key in self.metrics & values.keys()))
        loss = point.scalars.get("loss", math.nan)
        if self.first_loss is None and math.isfinite(loss):
            self.first_loss = loss
        self._add("", point.step, ((key, point.scalars[key]) for key in self.scalars & point.scalars.keys()))

    def _add(self, layer: str, step: int, values: Iterable[tuple[str, float]]) -> None:
        assert self.point is not None  # noqa: S101 - called from `take`
        for key, value in values:
            if math.isfinite(value):
                self._tracks.setdefault((self.point.tempo, layer, key), Track()).add(step, value)

    def limit(self, name: str) -> float:
        """A threshold."""
        return self.limits[name]

    def now(self, *metrics: str, inside: bool = False) -> dict[str, tuple[Track, ...]]:
        """The layers of this point that have finite values of all these metrics, with their tracks.

        `inside` leaves out embeddings and heads: in healthy language models too their spectra collapse towards the
        direction that all tokens share.
        """
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        found = {}
        for layer, values in self.point.layers.items():
            if inside and _outside(layer):
                continue
            if all(math.isfinite(values.get(key, math.nan)) for key in metrics):
                found[layer] = tuple(self._tracks[self.point.tempo, layer, key] for key in metrics)
        return found

    def scalar(self, name: str) -> Track | None:
        """A number of the whole model, if this point has a finite one."""
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        return self.track("", name) if math.isfinite(self.point.scalars.get(name, math.nan)) else None

    def track(self, layer: str, metric: str) -> Track | None:
        """The track of a metric at this point's tempo, if there is one."""
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        return self._tracks.get((self.point.tempo, layer, metric))
