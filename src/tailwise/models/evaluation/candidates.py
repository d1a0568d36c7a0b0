"""Several evaluations side by side: quality against size, and which models no other is better and smaller than.

Imports no torch. Models are held against each other where they were scored on the same windows (or documents), since
only then their differences can be paired.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, read_bytes
from tailwise.models.evaluation.intervals import MOST_RUNS, Values
from tailwise.models.evaluation.score_pairs import compare_scores, paired
from tailwise.models.evaluation.scores import (
    NONE,
    Divergence,
    Interval,
    ScoreChange,
    ScoreComparison,
    Scores,
    TaskScore,
)

Evaluation = Scores | ScoreComparison

#: On the front; not told from a model on it; worse than one on it that is no larger; or without the numbers.
Standing = Literal["front", "not told apart", "behind", "–"]
FRONT: Standing = "front"
NEAR: Standing = "not told apart"
BEHIND: Standing = "behind"
NOWHERE: Standing = "–"

_MOST_PAIRED = 400  # models of one text
#: Windows of all pairs that are held against each other, each pair once: about 15 seconds of a processor.
_MOST_WINDOWS = 20_000


@dataclass(frozen=True)
class ScoredModel:
    """One model that was scored."""

    scores: Scores
    source: str = ""  # the name of the file that it was read from
    divergence: Divergence | None = None  # from the base
    change: ScoreChange | None = None  # of the log perplexity, against the base
    is_base: bool = False

    @property
    def nbytes(self) -> int | None:
        """Stored bytes; of a model that is stored dequantized, those that its plan's formats take."""
        facts = self.scores.facts
        return None if facts is None else facts.nbytes if facts.planned_nbytes is None else facts.planned_nbytes

    @property
    def nonzero(self) -> int | None:
        """Parameters that are not zero."""
        return None if self.scores.facts is None else self.scores.facts.nonzero


@dataclass(frozen=True)
class Size:
    """A way to say how large a model is."""

    key: str
    title: str
    of: Callable[[ScoredModel], int | None]


SIZES = (
    Size("bytes", "bytes", lambda one: one.nbytes),
    Size("nonzero", "parameters that are not zero", lambda one: one.nonzero),
)


@dataclass(frozen=True)
class QualityMeasure:
    """A way to say how good a model is."""

    key: str
    title: str
    unit: str
    value: Callable[[ScoredModel], float | None]
    interval: Callable[[ScoredModel], Interval | None]
    units: Callable[[ScoredModel], Values | None]  # of windows or documents in their order: what is paired
    log: bool = False  # drawn so
    higher_is_better: bool = False


class _WindowRoom:
    """How many windows were held against each other, of all that one page may take."""

    def __init__(self) -> None:
        self._windows = 0

    def takes(self, windows: int) -> bool:
        """Whether there is room, which is taken."""
        free = self._windows <= _MOST_WINDOWS
        self._windows += min(windows, MOST_RUNS)
        return free


class _Pairs:
    """Which of two models is worse, asked once each: a page asks for every size anew."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, int, str], bool] = {}
        self._room = _WindowRoom()

    def is_worse(
        self, pair: tuple[int, int], models: tuple[ScoredModel, ScoredModel], how: QualityMeasure, seed: int
    ) -> bool:
        """Whether the first of `models`, which stand at `pair`, is told from the second; taken to be without room."""
        key, units = (*pair, how.key), how.units(models[0])
        if key not in self._found:
            self._found[key] = units is None or not self._room.takes(len(units)) or _is_worse(*models, how, seed)
        return self._found[key]


@dataclass(frozen=True)
class SameText:
    """Models that were scored on the same windows, or asked the same tasks."""

    candidates: tuple[ScoredModel, ...]
    _pairs: _Pairs = field(default_factory=_Pairs, init=False, repr=False, compare=False)

    @property
    def base(self) -> ScoredModel | None:
        """What the others are held against."""
        return next((one for one in self.candidates if one.is_base), None)

    @property
    def text(self) -> str:
        """What they were scored on."""
        first = self.candidates[0].scores
        if not first.losses:
            return ", ".join(dict.fromkeys(task.task for task in first.tasks)) or "no text"
        return str(first.settings.get("text") or "a text")

    @property
    def windows(self) -> str:
        """How many windows of how many tokens."""
        first = self.candidates[0].scores
        return f"{len(first.losses)} windows of {first.tokens_per_window + 1} tokens" if first.losses else ""

    @property
    def measures(self) -> tuple[QualityMeasure, ...]:
        """Those that any of the models has a value of."""
        tasks = dict.fromkeys((task.task, task.metric, task.higher_is_better)
                              for one in self.candidates for task in one.scores.tasks)  # fmt: skip
        every = (_PERPLEXITY, _KL, *(_of_task(*task) for task in tasks))
        return tuple(one for one in every if any(one.value(candidate) is not None for candidate in self.candidates))

    @property
    def sizes(self) -> tuple[Size, ...]:
        """Those by which the models differ by a hundredth or more; bytes where they differ by none."""
        found = tuple(size for size in SIZES if _differ([size.of(one) for one in self.candidates]))
        return found or SIZES[:1]

    def standings(self, measure: QualityMeasure, size: Size, *, seed: int = 0) -> tuple[Standing, ...]:
        """Where each model stands in quality and size together (the Pareto front)."""
        known = [
            (index, nbytes, value)
            for index, one in enumerate(self.candidates)
            if (nbytes := size.of(one)) is not None and (value := measure.value(one)) is not None
        ]
        sign = -1.0 if measure.higher_is_better else 1.0
        found: list[Standing] = [NOWHERE] * len(self.candidates)
        for index, nbytes, value in known:
            better = [
                (sign * other, at) for at, others, other in known
                if others <= nbytes and sign * other <= sign * value and (others, other) != (nbytes, value)
            ]  # fmt: skip
            if not better:
                found[index] = FRONT
            elif len(known) > _MOST_PAIRED:
                found[index] = BEHIND
            else:
                at = min(better)[1]
                both = self.candidates[index], self.candidates[at]
                found[index] = BEHIND if self._pairs.is_worse((index, at), both, measure, seed) else NEAR
        return tuple(found)


def _differ(sizes: Sequence[int | None]) -> bool:
    known = [size for size in sizes if size is not None]
    return len(known) > 1 and max(known) > 1.01 * min(known)


def _is_worse(one: ScoredModel, ahead: ScoredModel, measure: QualityMeasure, seed: int) -> bool:
    """Whether `one` is told from a better one, pair by pair; taken to be, where there are no pairs."""
    before, after = measure.units(ahead), measure.units(one)
    if before is None or after is None or len(before) != len(after):
        return True
    if not (np.isfinite(before).all() and np.isfinite(after).all()):
        return True
    return paired("", before, after, seed, higher_is_better=measure.higher_is_better).verdict != NONE


def _around(change: ScoreChange | None, base: float | None, own: Interval | None) -> Interval | None:
    """95 % of a perplexity: of its change against the base, which is the same text, where there is one."""
    if change is None or change.interval is None or base is None:
        return own
    with np.errstate(over="ignore"):
        low, high = (float(np.exp(base + end)) for end in change.interval)
    return (low, high) if np.isfinite(high) else own


def _of_perplexity(one: ScoredModel) -> Interval | None:
    """None of the base: it is what the others are held against."""
    if one.change is None:
        return None if one.is_base else one.scores.interval
    return _around(one.change, one.change.before, one.scores.interval)


_PERPLEXITY = QualityMeasure(
    "perplexity",
    "perplexity",
    "",
    lambda one: one.scores.perplexity,
    _of_perplexity,
    lambda one: _values(one.scores.losses),
    log=True,
)  # fmt: skip
_KL = QualityMeasure(
    "kl",
    "mean KL divergence",
    "nats",
    lambda one: None if one.divergence is None else one.divergence.kl,
    lambda one: None if one.divergence is None else one.divergence.kl_interval,
    lambda one: None if one.divergence is None else _values(one.divergence.kl_by_window),
    log=True,
)


def _of_task(task: str, metric: str, higher_is_better: bool) -> QualityMeasure:
    def asked(one: ScoredModel) -> TaskScore | None:
        return next((item for item in one.scores.tasks if (item.task, item.metric) == (task, metric)), None)

    def interval(one: ScoredModel) -> Interval | None:
        found = asked(one)
        if found is None or found.stderr is None:
            return None
        return found.value - 1.96 * found.stderr, found.value + 1.96 * found.stderr

    return QualityMeasure(
        f"{task} {metric}",
        f"{task}, {metric}",
        "",
        lambda one: None if (found := asked(one)) is None else found.value,
        interval,
        lambda one: None if (found := asked(one)) is None else _values(found.samples),
        higher_is_better=higher_is_better,
    )


def _values(given: Sequence[float | None]) -> Values | None:
    return np.array([np.nan if value is None else value for value in given], dtype=float) if given else None


def read_evaluation(path: str | Path) -> Evaluation:
    """Read what `evaluate -o x.json` wrote, of one model or of two. `UnreadableError` for anything else."""
    return ScoreComparison.load(path) if _kind(path) == "score comparison" else Scores.load(path)


def is_evaluation(path: str | Path) -> bool:
    """Whether a file is one that `evaluate -o x.json` wrote, by what it says that it is."""
    try:
        return Path(path).is_file() and _kind(path) in ("scores", "score comparison")
    except (UnreadableError, OSError):
        return False


def _kind(path: str | Path) -> str:
    try:
        said = json_of(read_bytes(Path(path)))
        return str(said.get("kind")) if isinstance(said, dict) else ""
    except (OSError, ValueError, RecursionError):  # told by who reads it
        return ""


def side_by_side(evaluations: Mapping[str, Evaluation]) -> tuple[SameText, ...]:
    """Name of the file → evaluation, by what they were scored on; a model that is in several stands there once.

    What was scored alone is held against the base of the others, where there is one.
    """
    groups: dict[tuple[object, ...], list[ScoredModel]] = {}
    for source, found in evaluations.items():
        parts = [found] if isinstance(found, Scores) else [found.model, found.base]
        for index, scores in enumerate(parts):
            of_pair = isinstance(found, ScoreComparison)
            one = ScoredModel(
                scores,
                source,
                found.divergence if isinstance(found, ScoreComparison) and index == 0 else None,
                found.perplexity if isinstance(found, ScoreComparison) and index == 0 else None,
                is_base=of_pair and index == 1,
            )
            _add(groups.setdefault(_key(scores), []), one)
    room = _WindowRoom()
    return tuple(_against_base(tuple(group), room) for group in groups.values())


def _key(scores: Scores) -> tuple[object, ...]:
    if scores.losses:
        return scores.digest, len(scores.losses)
    return tuple((task.task, task.metric, task.n) for task in scores.tasks)


def _add(group: list[ScoredModel], one: ScoredModel) -> None:
    """The same model with the same losses stands there once, with all that is known of it."""
    for place, other in enumerate(group):
        same = (other.scores.model, other.scores.losses) == (one.scores.model, one.scores.losses)
        if same and bool(one.scores.losses or other.scores.tasks == one.scores.tasks):
            more = replace(
                other,
                divergence=other.divergence or one.divergence,
                change=other.change or one.change,
                is_base=other.is_base or one.is_base,
            )
            group[place] = more
            return
    group.append(one)


def _against_base(group: tuple[ScoredModel, ...], room: _WindowRoom) -> SameText:
    """The base first, then by size; what has no change against the base gets one, as long as there is room."""
    # Of two bases, in a chain of comparisons, the first is the one.
    base = next((one for one in group if one.is_base), None)
    found = [replace(base, change=None)] if base is not None else []
    several = sum(one.is_base for one in group) > 1
    for one in sorted(group, key=_by_size):
        if one is base:
            continue
        change = one.change
        if base is not None and (change is None or several) and one.scores.losses and base.scores.losses:
            free = room.takes(len(one.scores.losses))
            change = compare_scores(one.scores, base.scores).perplexity if free else None
        found.append(replace(one, change=change, is_base=False))
    return SameText(tuple(found))


def _by_size(one: ScoredModel) -> tuple[float, float]:
    nbytes, perplexity = one.nbytes, one.scores.perplexity
    return -1.0 if nbytes is None else -nbytes, math.inf if perplexity is None else perplexity
