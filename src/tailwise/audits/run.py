"""`audit()`: a checkpoint to an `Audit`."""

from __future__ import annotations

import hashlib
import math
import platform
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast

from tailwise.audits.ahead import ReadAhead
from tailwise.audits.audit import Audit
from tailwise.audits.cache import Baselines, Cache
from tailwise.audits.on_engine import measured_on
from tailwise.audits.prepare import Prepared, Selection, prepare
from tailwise.audits.rows import Layer, LayerRow, Provenance, raised_by
from tailwise.audits.work import Worker, blas_of
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, Unmeasured
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.bars import Told, listener
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.execution.executor import (
    check_executor,
    checked_device,
    default_workers,
    engine_of,
    is_near,
    map_unordered,
)
from tailwise.core.recipe import BlasAsked, ConvMode, Precision, Recipe, RunOptions
from tailwise.core.shown import Brief
from tailwise.core.storage import ensure_room
from tailwise.core.validation import check, checked, names_in
from tailwise.spectrum.solvers.blas import BlasChoice

if TYPE_CHECKING:
    import torch

    Model = str | Path | Checkpoint | torch.nn.Module | dict[str, Any]

Progress = Callable[["Step"], None]
_Measured = tuple[LayerRow, Layer | None]


class RecipeSettings(TypedDict, total=False):
    """Fields of `Recipe` and `RunOptions`, and which matrices to take."""

    estimator: str
    hill_estimator: str
    k_frac: float
    max_fingers: int
    conv: ConvMode
    precision: Precision
    min_evals: int
    randomize: int
    baseline_replicas: int
    bootstrap: int
    rivals: bool
    seed: int
    farms_window: int
    farms_windows: int
    metrics: str | Iterable[str]
    device: str
    workers: int | None
    cache_dir: Path | str | None
    use_cache: bool
    executor: Executor | str
    num_gpus: float | None
    patience: float
    blas: BlasAsked


class AuditSettings(RecipeSettings, total=False):
    """What `audit` takes beside the model and the choice of layers."""

    part: str | None
    dtype: Precision  # `precision`, as commands called it
    replicas: int  # `randomize`, as commands called it


@dataclass(frozen=True, repr=False)
class Step(Brief):
    """Progress of an audit: after preparation (`row` is None), and after each matrix."""

    row: LayerRow | None
    done: int
    total: int
    bytes_done: int
    bytes_total: int
    flops_done: float
    flops_total: float

    def __repr__(self) -> str:
        name = "" if self.row is None else f", {self.row.name}"
        return f"Step({self.done} of {self.total} matrices{name})"


def of_step(step: Step) -> Told:
    """What a bar shows of a step: the work that is done, for a square matrix costs more per byte than a flat one."""
    return "" if step.row is None else step.row.name, step.flops_done, step.flops_total


@checked
def audit(
    model: Model,
    *,
    layers: str | None = None,
    roles: str | Iterable[str] = (),
    base: str | None = None,
    adapter_mode: Literal["delta", "merged"] = "delta",
    progress: Progress | bool | None = None,
    **settings: Unpack[AuditSettings],
) -> Audit:
    """Measure every weight matrix of a model.

    Parameters
    ----------
    model
        What `open_checkpoint` takes: a path, a URL, a Hugging Face id (`org/name@revision`), a `torch.nn.Module`, a
        dict of arrays, or an open `Checkpoint`.
    layers, roles
        Take only matrices whose name matches the regular expression, or whose role is listed.
    base, adapter_mode
        For an adapter: the model that it adapts, and whether its change (`delta`) or the result (`merged`) is
        read. Merged without a base, it is the model that the adapter names.
    progress
        Called with a `Step` after preparation and after each matrix, from the calling thread; or True for a bar, False
        for none. By default there is a bar in notebooks and interactive shells, and none in scripts.
    settings
        Fields of `Recipe` (what changes the numbers) and of `RunOptions` (what changes the speed); and `part`: of a
        file that holds more than one set of weights, which to take (`model_ema`, for example).

    Raises `UsageError` for wrong settings and `UnreadableError` where the model cannot be read. A matrix that cannot
    be measured raises nothing: it is a row with a status. An interrupted audit goes on where it was when it is run
    again, since each spectrum is kept as soon as it is there.

    >>> import numpy as np, tailwise as tw
    >>> weights = {"up.weight": np.random.default_rng(0).standard_normal((96, 64)), "norm.bias": np.zeros(64)}
    >>> audit = tw.audit(weights, metrics=("alpha", "stable_rank"), use_cache=False)
    >>> [layer.name for layer in audit], [row.name for row in audit.unmeasured]
    (['up'], ['norm.bias'])
    >>> sorted(audit["up"].row.metrics)
    ['alpha', 'stable_rank']
    >>> tw.audit(weights, estimator="kz")
    Traceback (most recent call last):
    tailwise.core.errors.UnknownNameError: there is no estimator named 'kz'
      → did you mean ks?
    """
    part = settings.pop("part", None)
    _rename(settings)
    check("part", part, str | None)
    ensure_room()
    recipe, options = split_settings(settings)
    checkpoint = (
        model
        if isinstance(model, Checkpoint)
        else open_checkpoint(model, base=base, adapter_mode=adapter_mode, part=part)
    )
    try:
        prepared = prepare(checkpoint, recipe, options, Selection(layers, _names(roles)))
        with listener(progress, "audit", of_step) as told:
            return run(checkpoint, prepared, told)
    finally:
        if checkpoint is not model:
            checkpoint.close()


#: Settings by the names that commands had for them.
_OLD = {"dtype": "precision", "replicas": "randomize"}


def _rename(settings: AuditSettings) -> None:
    taken = cast("dict[str, Any]", settings)
    for old, new in _OLD.items():
        if old in taken:
            warnings.warn(f"{old} is called {new} now", DeprecationWarning, stacklevel=4)
            value = taken.pop(old)
            # The number of permutations stood beside the switch.
            if new not in taken or taken[new] is True:
                taken[new] = value


def _names(given: str | Iterable[str]) -> tuple[str, ...]:
    if isinstance(given, str):
        return names_in(given)
    if not isinstance(given, Iterable):
        raise UsageError(f"{given!r} is no list of names", fix="give one name, or a list of names")
    return tuple(given)


def split_settings(settings: RecipeSettings) -> tuple[Recipe, RunOptions]:
    """What changes the numbers, and what changes only the speed. Raises `UsageError` for an unknown name."""
    recipe_names = {item.name for item in fields(Recipe)}
    option_names = {item.name for item in fields(RunOptions)}
    for name in settings:
        if name not in recipe_names | option_names:
            raise unknown_name("setting", name, recipe_names | option_names)
    taken: dict[str, Any] = dict(settings)
    if "metrics" in taken:
        taken["metrics"] = _names(taken["metrics"])
    recipe = Recipe(**{name: value for name, value in taken.items() if name in recipe_names})
    return recipe, RunOptions(**{name: value for name, value in taken.items() if name in option_names})


def run(checkpoint: Checkpoint, prepared: Prepared, progress: Progress | None = None) -> Audit:
    """Carry out a prepared audit."""
    started, clock = datetime.now(UTC), time.perf_counter()
    cache = Cache.of(prepared.options)
    blas = blas_of(prepared.options.blas, cache)
    tally = _Tally(prepared, progress)
    results: dict[str, tuple[LayerRow, Layer | None]] = {}
    by_name = {source.name: source for source in prepared.sources}
    with _measuring(checkpoint, prepared, cache, blas) as (workers, measured_rows):
        for row, layer in measured_rows:
            results[row.name] = (row, layer)
            tally.add(by_name[row.name], row)
    rows = [results[source.name][0] for source in prepared.sources]
    rows += [unmeasured_row(item) for item in prepared.unmeasured]
    found = {row.name: layer for row, layer in results.values() if layer is not None}
    measured = {row.name: found[row.name] for row in rows if row.name in found}
    provenance = _provenance(checkpoint, prepared, rows, started.isoformat(timespec="seconds"), workers)
    computed = {**provenance.versions, **({"blas": blas.told} if blas.told else {})}
    notes = (*checkpoint.notes, *([cache.trouble] if cache.trouble else []), *_raised(rows))
    return Audit(
        rows, measured, replace(provenance, versions=computed, seconds=time.perf_counter() - clock, notes=notes)
    )


@contextmanager
def _measuring(
    checkpoint: Checkpoint, prepared: Prepared, cache: Cache, blas: BlasChoice
) -> Iterator[tuple[int, Iterator[_Measured]]]:
    """How many workers there are, and rows and layers as they come from them."""
    options = prepared.options
    check_executor(options.executor)
    if is_near(options.executor):
        device = checked_device(options.device)
        worker = Worker(checkpoint, prepared.recipe, device, cache, Baselines(cache), blas=blas)
        pool = options.executor if isinstance(options.executor, ThreadPoolExecutor) else None
        workers = options.workers or (default_workers(options.device) if pool is None else pool._max_workers)
        order = _order(prepared.sources)
        with _read_ahead(worker, order):
            yield max(1, workers), map_unordered(worker, order, max(1, workers), stop=worker.stop, pool=pool)
        return
    checkpoint.part(())  # tensors in memory are refused before any worker is started
    with engine_of(options) as engine:
        yield engine.slots(), measured_on(engine, checkpoint, prepared, cache)


def _order(sources: Iterable[MatrixSource]) -> list[MatrixSource]:
    """The largest first, which fills the workers evenly; before it the smallest, so that a row is there in a moment."""
    falling = sorted(sources, key=lambda source: -source.flops)
    return [*falling[-1:], *falling[:-1]]


@contextmanager
def _read_ahead(worker: Worker, order: list[MatrixSource]) -> Iterator[None]:
    """Where the checkpoint is remote: what comes next is fetched while a matrix is solved."""
    if worker.checkpoint.local:
        yield
        return
    with ReadAhead(worker.checkpoint, [source for source in order if not worker.is_known(source)]) as worker.ahead:
        yield


class _Tally:
    def __init__(self, prepared: Prepared, progress: Progress | None) -> None:
        self._progress = progress
        self._step = Step(
            None, 0, len(prepared.sources), 0, prepared.nbytes, 0.0, sum(s.flops for s in prepared.sources)
        )
        self._tell()

    def add(self, source: MatrixSource, row: LayerRow) -> None:
        step = self._step
        self._step = replace(
            step,
            row=row,
            done=step.done + 1,
            bytes_done=step.bytes_done + source.nbytes,
            flops_done=step.flops_done + source.flops,
        )
        self._tell()

    def _tell(self) -> None:
        if self._progress is not None:
            self._progress(self._step)


def unmeasured_row(item: Unmeasured) -> LayerRow:
    """What is known of a tensor that is not measured."""
    rows = item.shape[0] if item.shape else 1
    cols = 1
    for extent in item.shape[1:]:
        cols *= extent
    return LayerRow(
        name=item.name,
        role=item.role,
        block=item.block,
        kind="",
        rows=rows,
        cols=cols,
        slices=1,
        dtype=item.dtype,
        status=item.status,
        reason=item.reason,
        tensors=item.tensors or (item.name,),
    )


def _raised(rows: list[LayerRow]) -> list[str]:
    """A note for each metric that raised exceptions, with the first of them."""
    notes = []
    for name in dict.fromkeys(name for row in rows for name, value in row.metrics.items() if value is None):
        found = [row for row in rows if raised_by(name) in row.reason]
        if found:
            what = found[0].reason.partition(raised_by(name))[2].partition("; ")[0]
            notes.append(f"the metric {name} has no value for {len(found)} of {len(rows)} matrices: it raised {what}")
    return notes


def _provenance(
    checkpoint: Checkpoint, prepared: Prepared, rows: list[LayerRow], started: str, workers: int
) -> Provenance:
    measured = [row for row in rows if row.measured]
    content = "\n".join(f"{row.name} {row.digest}" for row in sorted(measured, key=lambda row: row.name))
    return Provenance(
        model=checkpoint.uri,
        format=checkpoint.format,
        revision=checkpoint.revision,
        fingerprint=hashlib.sha256(content.encode()).hexdigest(),
        recipe=prepared.recipe.to_json(),
        config={key: _plain(value) for key, value in checkpoint.config.items() if _is_plain(value)},
        versions=versions(),
        device=prepared.options.device,
        workers=workers,
        started=started,
        seconds=0.0,
        reused=sum(row.reused for row in measured),
        bytes_read=sum(row.nbytes for row in measured if not row.reused),
        selection=_selection(checkpoint, prepared),
    )


def _selection(checkpoint: Checkpoint, prepared: Prepared) -> dict[str, Any]:
    chosen = prepared.selection
    said = {"part": checkpoint.chosen, "adapter": checkpoint.adapter_mode, "base": checkpoint.base_uri}
    taken = {name: value for name, value in said.items() if value}
    return {"layers": chosen.layers, "roles": list(chosen.roles), **taken}


def _is_plain(value: object) -> bool:
    return (
        isinstance(value, str | int | float | bool)
        or value is None
        or (isinstance(value, list) and all(isinstance(item, str | int | float) for item in value))
    )


def _plain(value: Any) -> Any:
    """JSON has no NaN and no infinity, config.json files do."""
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def versions() -> dict[str, str]:
    """Of Python, the machine, tailwise and what computes for it."""
    found = {"python": platform.python_version(), "machine": platform.machine()}
    for name in ("tailwise", "torch", "numpy", "scipy"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "unknown"
    return found
