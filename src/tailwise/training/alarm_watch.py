"""What an alarm rule sees: the last points of each layer and the last losses, bounded, and what changed among them."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import pairwise
from statistics import median

from tailwise.checkpoints.roles import classify
from tailwise.history.point import OPTIMIZER, Cadence, Point
from tailwise.judging.diagnosis.medians import robust_scale
from tailwise.training.factor_names import CHANGE, PEFT, factor_of

PAST, SHORT = 64, 5  # losses that a rise is held against, and those that show it
FEWEST = 20
_LEVEL = 16  # losses whose median is where the run stands
_RENEWED = 8  # steps after which what is usual is computed anew
_NOW = 24  # losses whose median is held against that of those before them in PAST
_OF_MEDIAN = math.sqrt(math.pi / 2)  # standard deviation of a median of normal values, over that of their mean
_FLOOR = 0.02  # share of the loss below which its scatter is never taken to be


@dataclass(frozen=True)
class Level:
    """Where the last losses stand, and where those before them stood."""

    now: float  # medians
    before: float
    error: float  # standard error of their difference
    since: int  # step of the first of the last ones


class LossTrack:
    """The last losses of a run, one a step, oldest first; those that are not finite are counted and not kept."""

    def __init__(self) -> None:
        self.steps: deque[int] = deque(maxlen=PAST + _RENEWED)
        self.values: deque[float] = deque(maxlen=PAST + _RENEWED)
        self.first: float | None = None
        self.step, self.last = 0, 0.0  # of the last, whatever it is
        self.usual: tuple[float, float] | None = None  # median and scatter before the last few
        self.level: Level | None = None
        self._sum, self._count = 0.0, 0  # since the last held-out loss
        self._since = 0

    def add(self, step: int, value: float) -> None:
        """Take the loss of a step. An earlier step: the run went back, and what came after it is forgotten."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
            self.level = None
        self.step, self.last = step, value
        if not math.isfinite(value):
            return
        self.first = value if self.first is None else self.first
        self._sum, self._count = self._sum + value, self._count + 1
        self.steps.append(step)
        self.values.append(value)
        self._since += 1
        if self._since >= _RENEWED and len(self.values) >= FEWEST + _RENEWED:
            past = list(self.values)[:-_RENEWED]
            # From one step to the next, so that the fall of a run that learns is no scatter.
            steps = [after - before for before, after in pairwise(past)]
            middle = median(past[-_LEVEL:])
            _, scatter = robust_scale(steps, math.sqrt(2) * (_FLOOR * abs(middle) + 1e-6))
            self.usual, self._since = (middle, scatter / math.sqrt(2)), 0
            self.level = self._levels() if len(self.values) >= PAST else None

    def mean(self) -> float:
        """The mean since this was last asked; NaN where there was no loss."""
        mean = self._sum / self._count if self._count else math.nan
        self._sum, self._count = 0.0, 0
        return mean

    def _levels(self) -> Level:
        values = list(self.values)
        recent, past = values[-_NOW:], values[-PAST:-_NOW]
        now, spread = robust_scale(recent, 0.0)
        before = median(past)
        _, steps = robust_scale([b - a for a, b in pairwise(past)], 0.0)
        scatter = max(spread, steps / math.sqrt(2), _FLOOR * abs(before) + 1e-6)
        error = _OF_MEDIAN * scatter * math.sqrt(1 / len(recent) + 1 / len(past))
        return Level(now, before, error, self.steps[-_NOW])

    @property
    def recent(self) -> list[float]:
        """The last few, newest first."""
        return [self.values[-1 - i] for i in range(min(SHORT, len(self.values)))]

    def began(self, bound: float) -> int:
        """The step of the oldest of the last few that is above a bound."""
        return next((self.steps[-1 - i] for i in reversed(range(min(SHORT, len(self.values))))
                     if self.values[-1 - i] >= bound), self.step)  # fmt: skip


#: Points that are kept of each metric of each layer.
HISTORY = 40
#: Points between which a change is measured, so that one odd value is not a change of pace.
SPAN = 3
#: What is kept whichever rules are asked: they look at it where it is there, and do without.
BESIDE = frozenset({"spectral_norm", "stable_rank", "update_ratio"})
BESIDE_SCALARS = frozenset({"loss", "eval_loss"})
#: A track of the whole model: the mean training loss from one held-out loss to the next.
BETWEEN = "loss between held-out losses"
_MOVES = 0.1
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
    norms = {"frobenius": values["frobenius_norm"]} if "frobenius_norm" in values else {}
    for norm, name in _LOGARITHMS.items():
        if name in values and values[name] < _LARGEST:
            norms.setdefault(norm, 10.0 ** (values[name] / 2))
    return {**norms, **values}


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

    def steps_since(self, points: int) -> int:
        """Steps between the value so many points before the last, or the oldest there is, and the last."""
        return self.steps[-1] - self.steps[max(len(self.steps) - 1 - points, 0)]

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
def outside(layer: str) -> bool:
    """Whether a layer is an embedding or a head by its name."""
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
    first_point_loss: float | None = None
    optimizer: str = ""  # names of those that train the run, where a point's note says so
    losses: LossTrack = field(default_factory=LossTrack)  # of every step, where they are told
    _tracks: dict[tuple[Cadence, str, str], Track] = field(default_factory=dict)
    _born: dict[str, int | None] = field(default_factory=dict)  # layer → step at which it was all zeros
    _latest: dict[Cadence, int] = field(default_factory=dict)

    def take(self, point: Point) -> None:
        """Take the next point. Values that are not finite are not kept.

        A step that is not later than the last of its cadence: the run went back to a checkpoint, and what came after it
        is forgotten.
        """
        self.point = point
        for note in point.notes:
            if note.startswith(OPTIMIZER):
                self.optimizer = note.removeprefix(OPTIMIZER)
        # A point without layers is a note of a step, which may come after the measurement of the same one.
        if point.step <= self._latest.get(point.cadence, -1) - (not point.layers):
            for track in self._tracks.values():
                track.rewind(point.step)
            # Once for both cadences: a full point of this step comes after cheap ones of later steps, which stay.
            self._latest = {cadence: min(latest, point.step - 1) for cadence, latest in self._latest.items()}
        self._latest[point.cadence] = point.step
        for layer, values in point.layers.items():
            self._see(layer, values, point.step)
            self._add(layer, point.step, ((key, values[key]) for key in self.metrics & values.keys()))
        loss = point.scalars.get("loss", math.nan)
        if self.first_point_loss is None and math.isfinite(loss):
            self.first_point_loss = loss
        self._add("", point.step, ((key, point.scalars[key]) for key in self.scalars & point.scalars.keys()))
        if math.isfinite(point.scalars.get("eval_loss", math.nan)):
            mean = self.losses.mean()
            last = self.track("", "loss")
            mean = mean if math.isfinite(mean) else last.last if last else math.nan
            self._add("", point.step, [(BETWEEN, mean)])

    def _add(self, layer: str, step: int, values: Iterable[tuple[str, float]]) -> None:
        assert self.point is not None  # noqa: S101 - called from `take`
        for key, value in values:
            if math.isfinite(value):
                track = self._tracks.setdefault((self.point.cadence, layer, key), Track())
                track.rewind(step)  # the later value of a step counts
                track.add(step, value)

    def _see(self, layer: str, values: Mapping[str, float], step: int) -> None:
        if layer in self._born and self._born[layer] is None:
            return
        if values.get("frobenius") == 0.0:
            self._born[layer] = step
        elif layer not in self._born:
            # Of an adapter that is not seen from its beginning, the second factor and what both make are as if new.
            self._born[layer] = step - 1 if factor_of(layer) == "B" or self._is_change(layer) else None

    def _is_change(self, layer: str) -> bool:
        """Whether a matrix is what an adapter adds to a weight: adapters have it beside their factors."""
        assert self.point is not None  # noqa: S101 - called from `take`
        if factor_of(layer) or layer.endswith(".base_layer") or f"{layer}{CHANGE}" in self.point.layers:
            return False
        module = layer.partition("#")[0]  # parts of a fused projection have one pair of factors
        return any(other.replace(PEFT, "", 1).startswith(f"{module}.lora_") for other in self.point.layers)

    def age(self, layer: str) -> int | None:
        """Steps since a layer was all zeros; None of one that began with weights.

        What begins at zero (the second factor of LoRA, the output of a branch that starts as nothing) grows many times
        over while all is well: at a steady rate its norm is as its age, and a step moves it by one part in its age.
        """
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        born = self._born.get(layer)
        return None if born is None else max(self.point.step - born, 1)

    def adapts(self, layer: str) -> bool:
        """Whether a layer is a part of an adapter, whose spectrum is of few directions and no sign of anything."""
        return bool(factor_of(layer)) or self._born.get(layer) is not None

    def moves(self, layer: str) -> bool:
        """Whether a step moves a layer by a tenth of what the median layer moves by, as far as that was measured."""
        ratios = {name: track.last for (_, name, metric), track in self._tracks.items() if metric == "update_ratio"}
        return layer in ratios and ratios[layer] >= _MOVES * median(ratios.values())

    @property
    def first_loss(self) -> float | None:
        """The loss that the run began with, of its first step where every step's is told.

        A run that goes on has it in its stored points, so the larger of the two.
        """
        return max((loss for loss in (self.first_point_loss, self.losses.first) if loss is not None), default=None)

    def gain(self, layer: str, points: int = 0) -> float:
        """The spectral norm so many points ago: the most that a layer enlarges what it is given. Infinity if unknown.

        A layer with little of it is as good as not begun: small weights as of a normal distribution of 0.02 are noise
        that training soon outgrows, so that norms, ranks and ratios beside them say nothing.
        """
        track = self.track(layer, "spectral_norm")
        return track.ago(points) if track else math.inf

    def grown(self, layer: str) -> frozenset[int]:
        """The steps, of this cadence's last points, at which a layer had a gain of `unit_gain` or more."""
        track = self.track(layer, "spectral_norm")
        pairs = zip(track.steps, track.values, strict=True) if track else ()
        return frozenset(step for step, gain in pairs if gain >= self.limit("unit_gain"))

    def limit(self, name: str) -> float:
        """A threshold."""
        return self.limits[name]

    def now(self, *metrics: str, inside: bool = False) -> dict[str, tuple[Track, ...]]:
        """The layers of this point that have finite values of all these metrics, with their tracks.

        `inside` leaves out embeddings and heads: in healthy language models too their spectra collapse towards the
        direction that all tokens share.
        """
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        tracks = {}
        for layer, values in self.point.layers.items():
            if inside and outside(layer):
                continue
            if all(math.isfinite(values.get(key, math.nan)) for key in metrics):
                tracks[layer] = tuple(self._tracks[self.point.cadence, layer, key] for key in metrics)
        return tracks

    def scalar(self, name: str) -> Track | None:
        """A number of the whole model, if this point has a finite one."""
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        return self.track("", name) if math.isfinite(self.point.scalars.get(name, math.nan)) else None

    def track(self, layer: str, metric: str) -> Track | None:
        """The track of a metric at this point's cadence, if there is one."""
        assert self.point is not None  # noqa: S101 - rules are asked after `take`
        return self._tracks.get((self.point.cadence, layer, metric))
