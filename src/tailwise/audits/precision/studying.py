"""`study()`: a checkpoint to a `PrecisionStudy`."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Unpack

from tailwise.audits.cache import Baselines, Cache
from tailwise.audits.precision.loaded import LOAD_DTYPES, Means
from tailwise.audits.precision.study import LayerStudy, PrecisionStudy
from tailwise.audits.precision.study_work import StudyWorker
from tailwise.audits.prepare import Prepared, Selection, prepare
from tailwise.audits.run import RecipeSettings, Step, of_step, split_settings, versions
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.orientation import KEEPS_ORDER, in_order
from tailwise.core.bars import listener
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.execution.executor import checked_device, default_workers, map_unordered
from tailwise.core.validation import check_fields, checked
from tailwise.number_formats.formats import parse_format
from tailwise.spectrum.metrics.metric import METRICS

if TYPE_CHECKING:
    from tailwise.audits.run import Model
    from tailwise.core.recipe import Recipe
    from tailwise.number_formats.number_format import NumberFormat

_LOG = logging.getLogger("tailwise.audits.precision")
#: What people choose between.
DEFAULT_FORMATS = ("fp16", "bf16", "fp8_e4m3", "int8", "int4")
#: Facts of a metric that an encoded matrix does not have.
_OF_PERMUTATIONS = frozenset({"permuted", "permuted_bulks", "permuted_tails"})


@dataclass(frozen=True)
class StudyOptions:
    """Which matrices, and what is looked at."""

    layers: str | None = None  # regular expression, searched in the name
    roles: tuple[str, ...] = ()
    base: str | None = None  # for an adapter
    load_dtype: str = "fp32"  # what the weights are rounded to before anything else
    directions: int = 16  # leading directions whose overlap is measured

    def __post_init__(self) -> None:
        check_fields(self)
        if self.load_dtype not in LOAD_DTYPES:
            raise unknown_name("load dtype", self.load_dtype, LOAD_DTYPES)
        if self.directions < 1:
            raise UsageError(f"{self.directions} directions", fix="give one or more")


@checked
def study(
    model: Model,
    formats: Iterable[str] = DEFAULT_FORMATS,
    *,
    options: StudyOptions | None = None,
    progress: Callable[[Step], None] | bool | None = None,
    **settings: Unpack[RecipeSettings],
) -> PrecisionStudy:
    """Encode every weight matrix of a model in each format, and measure what that does to it and to its spectrum.

    Parameters
    ----------
    model
        What `audit` takes.
    formats
        Names as `parse_format` takes them: `bf16`, `int4-g128`, `nvfp4` …
    progress
        As for `audit`.
    settings
        Fields of `Recipe` (`k_frac`, `precision` of the solver, `metrics` to compute beside alpha …) and of
        `RunOptions`. Alpha is always Hill's, of the largest `k_frac` of the eigenvalues.

    Each tensor is read once; the spectrum of the weights as loaded comes from the audit's cache where it is there.
    A matrix that cannot be measured raises nothing: it is a layer with a status. Raises `UsageError` for wrong
    settings and `UnreadableError` where the model cannot be read.

    >>> import numpy as np, tailwise as tw
    >>> weights = {"up.weight": np.random.default_rng(0).standard_normal((96, 64)).astype(np.float32)}
    >>> found = tw.precision.study(weights, ("bf16", "int4"), use_cache=False)
    >>> {name: round(reading.relative_error, 3) for name, reading in found["up"].readings.items()}
    {'bf16': 0.002, 'int4': 0.101}
    """
    chosen, began = options or StudyOptions(), time.perf_counter()
    parsed = _parsed(formats)
    recipe, run_options = split_settings(settings)
    _check_metrics(recipe)
    if run_options.executor != "local":
        raise UsageError("a precision study runs on threads of this process", fix="leave the executor out")
    checkpoint = model if isinstance(model, Checkpoint) else open_checkpoint(model, base=chosen.base)
    try:
        prepared = prepare(checkpoint, recipe, run_options, Selection(chosen.layers, chosen.roles))
        if not prepared.sources:
            raise _nothing(prepared, checkpoint.uri)
        with listener(progress, "study", of_step) as told:
            layers, trouble = _run(checkpoint, prepared, parsed, chosen, told)
    finally:
        if checkpoint is not model:
            checkpoint.close()
    kept = {name: getattr(recipe, name) for name in ("k_frac", "conv", "precision", "min_evals")}
    selection = {"layers": chosen.layers, "roles": list(chosen.roles)}
    return PrecisionStudy(
        model=checkpoint.uri,
        formats=tuple(item.name for item in parsed),
        sources={item.name: item.source for item in parsed},
        layers=(*layers, *_too_small(prepared)),
        settings={**kept, "load_dtype": chosen.load_dtype, "directions": chosen.directions, "selection": selection,
                  "metrics": list(recipe.metrics)},
        notes=(*checkpoint.notes, *([trouble] if trouble else [])),
        seconds=time.perf_counter() - began,
        versions=versions(),
    )  # fmt: skip


def _parsed(formats: Iterable[str]) -> list[NumberFormat]:
    names = [formats] if isinstance(formats, str) else list(formats)
    parsed = {item.name: item for item in map(parse_format, names)}
    if not parsed:
        raise UsageError("there is no format to study", fix="name one or more, e.g. fp32,bf16,int4")
    return list(parsed.values())


def _nothing(prepared: Prepared, uri: str) -> UsageError:
    """The error for a model without a matrix, with why its first tensors are none."""
    rest = [f"{item.name}: {item.reason}" for item in prepared.unmeasured[:3]]
    return UsageError("there is no weight matrix in it", where=uri, fix="; ".join(rest) or "check the file")


def _too_small(prepared: Prepared) -> list[LayerStudy]:
    """Matrices below the least number of eigenvalues: listed, with why, and not studied."""
    return [
        LayerStudy(item.name.removesuffix(".weight"), item.role, item.block, item.shape[0], math.prod(item.shape[1:]),
                   math.prod(item.shape), item.dtype, item.status, item.reason)
        for item in prepared.unmeasured
        if item.status == "TOO_SMALL" and len(item.shape) > 1
    ]  # fmt: skip


def _check_metrics(recipe: Recipe) -> None:
    for name in recipe.metrics:
        if _OF_PERMUTATIONS & set(METRICS[name].needs):
            raise UsageError(f"{name} needs permuted weights, which a precision study does not have",
                             fix="leave it out, and use `tailwise audit --randomize` for it")  # fmt: skip
    if recipe.uses_windows:
        raise UsageError("a precision study does not sample windows", fix="choose another estimator than farms")


def _run(
    checkpoint: Checkpoint,
    prepared: Prepared,
    formats: Sequence[NumberFormat],
    options: StudyOptions,
    progress: Callable[[Step], None] | None,
) -> tuple[tuple[LayerStudy, ...], str | None]:
    run = prepared.options
    cache = Cache.of(run)
    recipe = prepared.recipe
    means = Means(options.load_dtype, options.directions, recipe.precision, checked_device(run.device), cache)
    worker = StudyWorker(checkpoint, recipe, formats, means, Baselines(cache))
    workers = max(1, run.workers or default_workers(run.device))
    step = Step(None, 0, len(prepared.sources), 0, prepared.nbytes, 0.0, prepared.flops)
    found: dict[str, LayerStudy] = {}
    by_name = {source.name: source for source in prepared.sources}
    _tell(progress, step)
    for layer in map_unordered(worker, sorted(prepared.sources, key=lambda s: -s.flops), workers, stop=worker.stop):
        found[layer.name] = layer
        _log(layer)
        source = by_name[layer.name]
        step = replace(step, done=step.done + 1, bytes_done=step.bytes_done + source.nbytes,
                       flops_done=step.flops_done + source.flops)  # fmt: skip
        _tell(progress, step)
    as_stored = [found[source.name] for source in prepared.sources]
    return tuple(in_order(as_stored, as_listed=checkpoint.format in KEEPS_ORDER)), cache.trouble


def _log(layer: LayerStudy) -> None:
    said = f": {layer.reason}" if layer.reason else ""
    _LOG.log(logging.INFO if layer.measured else logging.WARNING, "%s: %s%s", layer.name, layer.status, said)


def _tell(progress: Callable[[Step], None] | None, step: Step) -> None:
    if progress is not None:
        progress(step)
