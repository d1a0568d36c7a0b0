"""What a sweep would cost, from the headers of its models or of a sample of them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.audits.cache import Baselines, Cache
from tailwise.audits.cost import rates, shape_of
from tailwise.audits.prepare import Prepared, Selection, prepare
from tailwise.audits.work import Worker
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import TailwiseError
from tailwise.core.execution.executor import default_workers

if TYPE_CHECKING:
    from tailwise.core.recipe import Recipe, RunOptions

#: Models whose headers are read; of longer lists, that many at even distances.
SAMPLE = 100
#: Kept of a matrix beside its eigenvalues: a row in the audit, one in the data set, a file in the cache.
_KEPT_ROW = 1500


@dataclass(frozen=True)
class Cost:
    """Of one model, or the sum over several."""

    matrices: int = 0
    known: int = 0  # whose spectra are kept, or which another model of the list has too
    bytes: int = 0  # to read
    flops: float = 0.0
    core_seconds: float = 0.0  # of the processor
    wall_seconds: float = 0.0  # with the workers asked for, without waiting for bytes
    kept_bytes: int = 0  # of results

    def __add__(self, other: Cost) -> Cost:
        ours, theirs = asdict(self), asdict(other)
        return Cost(**{name: ours[name] + theirs[name] for name in ours})

    def times(self, factor: float) -> Cost:
        """Scaled up from a sample."""
        return Cost(**{name: type(value)(value * factor) for name, value in asdict(self).items()})


@dataclass(frozen=True)
class Forecast:
    """What a sweep would cost."""

    models: int
    sampled: int
    unreadable: tuple[tuple[str, str], ...]  # of the sampled: model and reason
    cost: Cost  # of all models
    spread: float  # half of a 95 % interval of the core seconds, relative; 0 where every model was looked at
    workers: int
    memory: int  # bytes, of the model that needs most
    dollars: float
    largest: str  # the sampled model that costs most

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "unreadable": [list(pair) for pair in self.unreadable]}


@dataclass
class ModelSample:
    """What the models looked at so far have in common."""

    recipe: Recipe
    options: RunOptions
    selection: Selection
    cache: Cache
    known: set[str] = field(default_factory=set)  # identities of tensors that a model before has
    shapes: set[tuple[int, int, int]] = field(default_factory=set)
    shape_seconds: float = 0.0  # of the noise that those are compared with, computed once for all models


def forecast(
    models: Sequence[str], recipe: Recipe, options: RunOptions, selection: Selection, *, price: float
) -> Forecast:
    """Read headers and add up; `price` is of a core for an hour, in dollars. No weight is read."""
    look = ModelSample(recipe, options, selection, Cache.of(options))
    chosen = _sample(models)
    costs: list[tuple[str, Cost, int]] = []
    unreadable: list[tuple[str, str]] = []
    for model in chosen:
        try:
            with open_checkpoint(model) as checkpoint:
                prepared = prepare(checkpoint, recipe, options, selection)
                costs.append((model, *cost_of(checkpoint, prepared, look)))
        except TailwiseError as error:
            unreadable.append((model, error.what))
    total = Cost()
    for _, cost, _ in costs:
        total += cost
    workers = options.workers or default_workers(options.device)
    noise = Cost(core_seconds=look.shape_seconds, wall_seconds=look.shape_seconds / workers)
    everything = total.times(len(models) / len(chosen)) + noise
    return Forecast(
        models=len(models),
        sampled=len(chosen),
        unreadable=tuple(unreadable),
        cost=everything,
        spread=_spread([cost.core_seconds for _, cost, _ in costs], len(chosen), len(models)),
        workers=workers,
        memory=max((memory for *_, memory in costs), default=0),
        # A machine is paid for while its last matrix keeps one core busy, too.
        dollars=everything.wall_seconds * workers / 3600 * price,
        largest=max(costs, key=lambda item: item[1].core_seconds)[0] if costs else "",
    )


def _sample(models: Sequence[str]) -> list[str]:
    if len(models) <= SAMPLE:
        return list(models)
    step = len(models) / SAMPLE
    return [models[int((index + 0.5) * step)] for index in range(SAMPLE)]


def _spread(seconds: list[float], sampled: int, models: int) -> float:
    """Half a 95 % interval of the sum, relative: of a sample drawn without putting back; models cost very unequally."""
    mean = sum(seconds) / max(len(seconds), 1)
    if sampled >= models or len(seconds) < 2 or mean == 0:
        return 0.0
    variance = sum((one - mean) ** 2 for one in seconds) / (len(seconds) - 1)
    return 1.96 * math.sqrt(variance / len(seconds) * (1 - sampled / models)) / mean


def cost_of(checkpoint: Checkpoint, prepared: Prepared, look: ModelSample) -> tuple[Cost, int]:
    """A model's cost, and the memory (bytes) that it needs."""
    worker = Worker(checkpoint, prepared.recipe, look.options.device, look.cache, Baselines(look.cache))
    new, known = [], 0
    for source in prepared.sources:
        if _seen(checkpoint, source, look) or worker.is_known(source):
            known += 1
        else:
            new.append(source)
    largest = max((source.m for source in prepared.sources), default=1)
    speed = rates(largest, prepared.recipe, look.options.device, look.cache)
    solves = 1 + prepared.recipe.randomize
    each = [speed.seconds(source, solves) for source in new]
    for source in new:
        if shape_of(source) not in look.shapes:
            look.shapes.add(shape_of(source))
            look.shape_seconds += speed.seconds_of_shape(source)
    workers = look.options.workers or default_workers(look.options.device)
    cost = Cost(
        matrices=len(prepared.sources),
        known=known,
        bytes=sum(source.nbytes for source in new),
        flops=solves * sum(source.flops for source in new),
        core_seconds=sum(each),
        # Taken largest first, matrices fill the workers evenly, unless one alone takes longer than the rest.
        wall_seconds=max([sum(each) / workers, *each]),
        kept_bytes=sum(2 * 8 * source.m * len(source.views) + _KEPT_ROW for source in prepared.sources),
    )
    return cost, prepared.memory(workers)


def _seen(checkpoint: Checkpoint, source: MatrixSource, look: ModelSample) -> bool:
    """Whether a model before had the same bytes, as far as hashes and addresses in the headers tell."""
    parts = [checkpoint.identity(name) for name in source.tensors]
    if not parts or None in parts:
        return False
    key = f"{parts} {source.views}"
    seen = key in look.known
    look.known.add(key)
    return seen
