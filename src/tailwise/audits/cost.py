"""What a matrix costs: n·m² for its Gram matrix, 4/3·m³ for the eigenvalues, and what is done beside them.

Neither product nor reduction runs at one rate: at m = 128 a core does a tenth of what it does at 4096. So both are
measured at a few sizes, and rates between them are interpolated over log m.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import numpy as np

from tailwise.audits.cache import Baselines, Cache, key_of
from tailwise.audits.work import Worker
from tailwise.core.execution.executor import checked_device, default_workers
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import LARGEST_NOISE, Facts, Spectra, gaussian_baseline, metrics_of
from tailwise.spectrum.spectrum import Spectrum

if TYPE_CHECKING:
    import torch

    from tailwise.audits.prepare import Prepared
    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.checkpoints.matrices import MatrixSource

#: Short sides that are measured; those above the largest matrix asked about are left out.
_SIZES = (64, 128, 256, 512, 1024, 2048, 4096)
#: Rows of the measured product for each column.
_ASPECT = 2
_HASHED = 8 << 20
#: A measurement is repeated so often, unless it took so many seconds before.
_TIMES, _LONG = 5, 0.5
#: Small matrices whose work items are measured whole.
_SMALL = 12


@dataclass(frozen=True)
class Rates:
    """Of one worker on one machine. Lists go along `sizes`."""

    sizes: list[int]  # m
    product: list[float]  # n·m² per second
    reduction: list[float]  # 4/3·m³ per second
    metrics: list[float]  # seconds a spectrum
    baseline: list[float]  # seconds a shape that was not met before
    hashing: float  # bytes per second
    matrix: float  # seconds a matrix, whatever its size: reading, keeping, the row

    def seconds(self, source: MatrixSource, solves: int = 1) -> float:
        """Of one matrix that is read, solved by its Gram matrix and measured; the baseline of its shape apart.

        `solves` is one more than the permutations of a recipe.
        """
        n, m = float(source.n), float(source.m)
        rank = min(m, source.nbytes / (n + m)) if source.by_factors else m  # of one byte an entry at least
        solving = (n + m) * rank**2 / self._at(rank, self.product) + rank**3 / self._at(rank, self.reduction)
        if not source.by_factors or solves > 1:
            solving = n * m**2 / self._at(m, self.product) + 4 / 3 * m**3 / self._at(m, self.reduction)
        return (
            solves * len(source.views) * solving
            + self._at(m, self.metrics)
            + source.nbytes / self.hashing
            + self.matrix
        )

    def seconds_of_shape(self, source: MatrixSource) -> float:
        """Of the noise that a shape is compared with, computed where the cache does not have it."""
        return 0.0 if source.m > LARGEST_NOISE else len(source.views) * self._at(source.m, self.baseline)

    def _at(self, m: float, values: list[float]) -> float:
        return float(np.exp(np.interp(math.log(m), np.log(self.sizes), np.log(values))))


def shape_of(source: MatrixSource) -> tuple[int, int, int]:
    """What matrices with one baseline have in common."""
    return source.n, source.m, len(source.views)


def rates(largest: int, recipe: Recipe, device: str, cache: Cache) -> Rates:
    """The rates for matrices with a short side up to `largest`; each size is measured once on a machine, and kept."""
    sizes = [size for size in _SIZES if size < 2 * largest] or [_SIZES[0]]
    about = [_machine(device), recipe.to_json()]

    def kept(what: int | str, measure: Callable[[], list[float]]) -> list[float]:
        key = key_of("rates", about, what)
        known = cache.note("rates", key)
        if isinstance(known, list):
            return known
        measured = _on_one_thread(measure)
        cache.keep_note("rates", key, measured)
        return measured

    points = [kept(size, partial(_point, size, recipe, device)) for size in sizes]
    product, reduction, metrics, baseline = (list(column) for column in zip(*points, strict=True))
    (hashing,) = kept("hashing", _hashing)
    bare = Rates(sizes, product, reduction, metrics, baseline, hashing, 0.0)
    (matrix,) = kept("matrix", partial(_each, bare, recipe))
    return replace(bare, matrix=matrix)


def _machine(device: str) -> list[Any]:
    import os
    import platform

    import torch

    gpu = torch.cuda.get_device_name(device) if device.startswith("cuda") else ""
    return [platform.node(), platform.machine(), os.cpu_count(), torch.__version__, device, gpu]


def _on_one_thread(measure: Callable[[], list[float]]) -> list[float]:
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            return measure()
    finally:
        torch.set_num_threads(threads)


def _hashing() -> list[float]:
    data = bytes(_HASHED)
    return [_HASHED / _clocked(lambda: hashlib.sha256(data).digest(), "cpu")]


def _each(bare: Rates, recipe: Recipe) -> list[float]:
    """Seconds that a small matrix takes beyond what its size explains: a whole work item, with a cache on disk."""
    import torch
    from safetensors.torch import save_file

    from tailwise.audits.cache import Baselines
    from tailwise.audits.prepare import prepare
    from tailwise.audits.work import Worker
    from tailwise.checkpoints.open import open_checkpoint

    side = bare.sizes[0]
    stream = torch.Generator().manual_seed(0)
    tensors = {f"{index}.weight": torch.randn(2 * side, side, generator=stream) for index in range(_SMALL)}
    with tempfile.TemporaryDirectory(prefix="tailwise-") as folder:
        save_file(tensors, Path(folder) / "model.safetensors")
        checkpoint, cache = open_checkpoint(folder), Cache(Path(folder) / "cache")
        first, *others = prepare(checkpoint, recipe.replace(metrics=(), randomize=0)).sources
        worker = Worker(checkpoint, recipe, "cpu", cache, Baselines(cache))
        worker(first)  # the baseline of the shape, and what is imported late
        started = time.thread_time()
        for source in others:
            worker(source)
        spent = (time.thread_time() - started) / len(others)
        checkpoint.close()
    return [max(spent - bare.seconds(others[0]), 1e-4)]


def _point(m: int, recipe: Recipe, device: str) -> list[float]:
    """Rates of product and reduction, and seconds of metrics and baseline, at one size."""
    import torch

    from tailwise.spectrum.solvers.blas import HERE, Blas
    from tailwise.spectrum.solvers.gram import DenseMatrix, eigenvalues_of, gram

    n, where = _ASPECT * m, torch.device(device)
    matrix = DenseMatrix(torch.randn(n, m, generator=torch.Generator().manual_seed(m)))
    dtype: torch.dtype = getattr(torch, recipe.precision)
    blas = HERE(m, recipe.precision) if device == "cpu" else Blas()
    triangle = gram(matrix, dtype, where, add=blas.add)
    product = _clocked(lambda: gram(matrix, dtype, where, add=blas.add), device)
    reduction = _clocked(lambda: eigenvalues_of(triangle.clone(), blas.reduce), device)
    values = eigenvalues_of(triangle, blas.reduce)[0].to("cpu", torch.float64).numpy()
    spectrum = Spectrum(values, n, m)
    noise = gaussian_baseline(n, m, 1, recipe)
    baseline = _clocked(lambda: _noise(n, m, recipe), "cpu")
    cheap = recipe.replace(randomize=0, metrics=(), estimator=recipe.estimator.removeprefix("farms:"))
    metrics = _clocked(lambda: metrics_of(Facts(Spectra(spectrum, (), None), cheap, lambda *_: noise)), "cpu")
    return [n * m**2 / product, 4 / 3 * m**3 / reduction, metrics, baseline]


def _noise(n: int, m: int, recipe: Recipe) -> None:
    from tailwise.spectrum.marchenko_pastur import gaussian_spectra

    gaussian_spectra.cache_clear()  # or the second time would measure a look-up
    gaussian_baseline(n, m, 1, recipe)


def _clocked(work: Callable[[], object], device: str) -> float:
    """Seconds of `work`, the median of a few: of the processor alone, which others on the machine do not lengthen."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    took: list[float] = []
    while len(took) < _TIMES and sum(took) < _LONG:
        _wait(device)
        started = clock()
        work()
        _wait(device)
        took.append(clock() - started)
    return max(median(took), 1e-7)


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        import torch

        torch.cuda.synchronize()


def forecast(checkpoint: Checkpoint, prepared: Prepared) -> dict[str, Any]:
    """Matrices, bytes, memory (bytes), seconds on this machine, and how many spectra are known already."""
    options = prepared.options
    cache = Cache.of(options)
    worker = Worker(checkpoint, prepared.recipe, options.device, cache, Baselines(cache))
    new = [source for source in prepared.sources if not worker.is_known(source)]
    workers = options.workers or default_workers(options.device)
    checked_device(options.device)  # rates are measured here, whatever the executor
    speed = rates(max((source.m for source in new), default=1), prepared.recipe, options.device, cache)
    each = [speed.seconds(source, 1 + prepared.recipe.randomize) for source in new]
    shapes = {shape_of(source): source for source in new}
    noise = sum(speed.seconds_of_shape(source) for source in shapes.values())
    return {
        "model": checkpoint.uri,
        "matrices": len(prepared.sources),
        "unmeasured": len(prepared.unmeasured),
        "bytes": prepared.nbytes,
        "memory": prepared.memory(workers),
        "workers": workers,
        "cached": len(prepared.sources) - len(new),
        # Taken largest first, matrices fill the workers evenly, unless one alone takes longer than the rest.
        "seconds": max([sum(each) / workers, *each]) + noise / workers,
    }
