"""Matrices measured by workers that share no memory with this process: addresses go out, spectra come back.

A task carries a few matrices as (file, offset, length, dtype) of their tensors. The worker reads those ranges itself,
the next matrix's while it solves the one before, and answers with rows and spectra: kilobytes.
"""

from __future__ import annotations

import pickle
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tailwise.audits.cache import Baselines, Cache, Carried, baseline_key
from tailwise.audits.prepare import Prepared
from tailwise.audits.rows import Layer, LayerRow
from tailwise.audits.work import Worker, blas_of, failure, row_of
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource
from tailwise.core.errors import TailwiseError, UnreachableError
from tailwise.core.execution.engine import Engine
from tailwise.core.execution.executor import checked_device, default_workers, map_unordered, one_thread
from tailwise.core.execution.spread import SpreadWork, patience_of, spread
from tailwise.core.recipe import BlasAsked, Recipe

#: Matrices up to this size are read ahead while the one before is solved.
AHEAD_BYTES = 256 << 20
#: Matrices in one task at most: what is lost with a worker.
_MOST = 4

Notes = Mapping[tuple[str, str], Any]  # (kind, key) → a small value, as `Cache.note` has them


@dataclass(frozen=True)
class MatrixTask:
    """A few matrices for a worker."""

    # Each with the pickled part of the checkpoint that it takes: a file that is gone spoils its own matrix alone.
    matrices: tuple[tuple[MatrixSource, bytes], ...]
    recipe: Recipe
    device: str
    folder: Path | str | None  # of the cache, which is read where the worker sees it
    notes: Notes  # baselines that are known already
    blas: BlasAsked = "auto"


@dataclass(frozen=True)
class MatrixOutcome:
    """One matrix as it came back."""

    row: LayerRow
    layer: Layer | None
    spectra: Mapping[str, Any] = field(default_factory=dict)  # new entries of the cache
    notes: Notes = field(default_factory=dict)
    unreachable: bool = False  # the store could not be reached, which may pass


def measured_on(
    engine: Engine, checkpoint: Checkpoint, prepared: Prepared, cache: Cache
) -> Iterator[tuple[LayerRow, Layer | None]]:
    """Rows and layers as they come. Matrices whose spectra are kept are not sent anywhere."""
    recipe, device = prepared.recipe, prepared.options.device
    local = Worker(checkpoint, recipe, "cpu", cache, Baselines(cache))
    largest_first = sorted(prepared.sources, key=lambda source: -source.flops)
    known = [source for source in largest_first if local.is_known(source)]
    yield from map_unordered(local, known, default_workers("cpu"), stop=local.stop)
    names = {source.name for source in known}
    baselines: dict[tuple[str, str], Any] = {}

    def pack(sources: Sequence[MatrixSource]) -> MatrixTask:
        wanted = [("baselines", _baseline(source, recipe)) for source in sources]
        spectra = {key: baselines.get(key, cache.note(*key)) for key in wanted}
        parts = tuple((source, pickle.dumps(checkpoint.part(source.tensors))) for source in sources)
        notes = {key: value for key, value in spectra.items() if value is not None}
        return MatrixTask(parts, recipe, device, cache.folder, notes, prepared.options.blas)

    work = SpreadWork(run, pack, _given_up, cost=lambda source: source.flops, again=_may_pass, most=_MOST)
    rest = [source for source in largest_first if source.name not in names]
    for outcome in spread(engine, work, rest, patience_of(prepared.options)):
        for key, spectrum in outcome.spectra.items():
            cache.keep_spectrum(key, spectrum)
        for (kind, key), value in outcome.notes.items():
            cache.keep_note(kind, key, value)
            if kind == "baselines":
                baselines[kind, key] = value
        yield outcome.row, outcome.layer


def _baseline(source: MatrixSource, recipe: Recipe) -> str:
    return baseline_key(source.rows, source.cols, len(source.views), recipe)


def _given_up(source: MatrixSource, why: str) -> MatrixOutcome:
    return MatrixOutcome(replace(row_of(source), status="FAILED", reason=why), None)


def _may_pass(outcome: MatrixOutcome) -> bool:
    return outcome.unreachable


def run(task: MatrixTask) -> tuple[MatrixOutcome, ...]:
    """On a worker: every matrix of a task, the next one read while one is solved."""
    with one_thread(), ThreadPoolExecutor(1, thread_name_prefix="tailwise-ahead") as reader:
        ahead = [reader.submit(_opened, source, packed) for source, packed in task.matrices[:1]]
        done = []
        for place, (source, _) in enumerate(task.matrices):
            part = ahead.pop().result()
            ahead = [reader.submit(_opened, *following) for following in task.matrices[place + 1 : place + 2]]
            if isinstance(part, MatrixOutcome):
                done.append(part)
                continue
            with part:
                done.append(_measured(task, source, part))
    return tuple(done)


def _opened(source: MatrixSource, packed: bytes) -> Checkpoint | MatrixOutcome:
    """The part of the checkpoint, its bytes read ahead where they are few; or why it cannot be opened here."""
    try:
        part: Checkpoint = pickle.loads(packed)  # noqa: S301 - made by the process that sent it
    except Exception as error:
        status, reason = failure(error)
        row = replace(row_of(source), status=status, reason=f"{reason} (every worker must see it under this name)")
        return MatrixOutcome(row, None, unreachable=isinstance(error, UnreachableError))
    if source.nbytes <= AHEAD_BYTES:
        with suppress(Exception):  # the same read is tried again where its error belongs
            part.fetch()
    return part


def _measured(task: MatrixTask, source: MatrixSource, part: Checkpoint) -> MatrixOutcome:
    cache = Carried(task.folder, {**_SEEN, **task.notes})
    errors: list[Exception] = []
    try:
        device, blas = checked_device(task.device), blas_of(task.blas, cache)
    except TailwiseError as error:
        return _given_up(source, str(error))
    worker = Worker(part, task.recipe, device, cache, Baselines(cache), failed=errors.append, blas=blas)
    row, layer = worker(source)
    with _GUARD:
        _SEEN.update({key: value for key, value in cache.notes.items() if key[0] in _LASTING})
    passing = any(isinstance(error, UnreachableError) for error in errors)
    return MatrixOutcome(row, layer, cache.spectra, cache.notes, passing)


#: Kinds of notes that the next matrix takes as well: noise, and which reduction was measured to be fastest here.
_LASTING = ("baselines", "solvers")
#: Of these, what this process has computed.
_SEEN: dict[tuple[str, str], Any] = {}
_GUARD = threading.Lock()
