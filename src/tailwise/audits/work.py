"""One work item of an audit: a matrix is read once, hashed, solved unless its spectrum is known, and measured."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeGuard

from tailwise.audits.audit import Layer, LayerRow
from tailwise.audits.cache import Cache, key_of
from tailwise.checkpoints.matrices import MatrixSource, WeightMatrix, load
from tailwise.errors import TailwiseError
from tailwise.metrics.facts import Facts, Spectra, gaussian_baseline, window_shape
from tailwise.metrics.measure import measure
from tailwise.recipe import Recipe
from tailwise.spectrum.sampling import permuted_spectrum, window_spectrum
from tailwise.spectrum.solve import NotFiniteError, solve
from tailwise.spectrum.solvers.blocks import BLOCK_BYTES
from tailwise.spectrum.spectrum import Spectrum, pool

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

#: Matrices up to this size are held between hashing and solving; larger local ones are read twice instead.
HOLD_BYTES = 256 << 20
#: Bytes asked for at once from afar, where every request is a round trip.
REMOTE_BLOCK_BYTES = 64 << 20


class HashedMatrix:
    """A matrix whose blocks are hashed as they pass, and held so that the solver need not read again.

    Each held block is let go as the solver takes it, unless `keep`: permutations and windows read W once more.
    """

    def __init__(self, matrix: WeightMatrix, *, hold: bool, keep: bool = False, block_bytes: int = BLOCK_BYTES) -> None:
        self.rows, self.cols = matrix.rows, matrix.cols
        self._keep, self._block_bytes = keep, block_bytes
        self.factors: Any = getattr(matrix, "factors", None)
        self._matrix, self._hold = matrix, hold
        self._held: list[torch.Tensor] | None = None
        self._digest: str | None = None

    def row_blocks(self, max_bytes: int) -> Iterator[torch.Tensor]:
        """The rows in blocks of the stored dtype; held ones first."""
        if self._held is None:
            yield from self._matrix.row_blocks(max_bytes)
            return
        if self._keep:
            yield from self._held
            return
        held, self._held = self._held, None
        held.reverse()
        while held:
            yield held.pop()

    @property
    def digest(self) -> str:
        """SHA-256 of the stored values, their type and shape."""
        if self._digest is None:
            self._digest = self._read()
        return self._digest

    def _read(self) -> str:
        state = hashlib.sha256(f"{self.rows}×{self.cols}".encode())
        held: list[torch.Tensor] = []
        blocks = self.factors if self.factors is not None else self._matrix.row_blocks(self._block_bytes)
        kind = None
        for block in blocks:
            if kind is None:
                kind = str(block.dtype)
                state.update(kind.encode())
            state.update(_bytes_of(block))
            if self._hold and self.factors is None:
                held.append(block)
        self._held = held if held else None
        return state.hexdigest()


def _bytes_of(block: torch.Tensor) -> memoryview:
    import torch

    flat = block.detach().to("cpu").contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack Buffer


class Baselines:
    """Noise of each shape, computed once per shape and kept in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._known: dict[str, Mapping[str, tuple[float, float]]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def __call__(self, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        """As `gaussian_baseline`."""
        shape = [max(rows, cols), min(rows, cols), slices, window_shape(recipe, rows, cols)]
        fits = [recipe.estimator, recipe.hill_estimator, recipe.k_frac, recipe.max_fingers]
        key = key_of("baseline", shape, fits, recipe.baseline_replicas, recipe.farms_windows, recipe.seed)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._known:
                self._known[key] = self._find(key, rows, cols, slices, recipe)
            return self._known[key]

    def _find(self, key: str, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        stored = self._cache.note("baselines", key)
        if isinstance(stored, dict) and set(stored) == {"alpha", "alpha_hill", "singular_entropy"}:
            return {name: (float(mean), float(sd)) for name, (mean, sd) in stored.items()}
        computed = gaussian_baseline(rows, cols, slices, recipe)
        self._cache.keep_note("baselines", key, dict(computed))
        return computed


@dataclass
class Worker:
    """What every work item of one audit shares."""

    checkpoint: Checkpoint
    recipe: Recipe
    device: str
    cache: Cache
    baselines: Baselines
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, source: MatrixSource) -> tuple[LayerRow, Layer | None]:
        """The row of `source`, and its layer where it could be measured. Never raises for a bad matrix."""
        row, started = row_of(source), time.perf_counter()
        try:
            if self.stop.is_set():
                return replace(row, status="FAILED", reason="the audit was stopped"), None
            layer = self._measure(source, row)
        except NotFiniteError as error:
            reason = f"{error}; find the step that made it, or repair the checkpoint"
            return replace(row, status="NOT_FINITE", reason=reason, seconds=time.perf_counter() - started), None
        except TailwiseError as error:
            return replace(row, status="UNREADABLE", reason=str(error)), None
        except MemoryError:
            return replace(row, status="FAILED", reason="out of memory; use fewer --workers"), None
        except Exception as error:
            return replace(row, status="FAILED", reason=f"{type(error).__name__}: {error}"), None
        finished = replace(layer.row, seconds=time.perf_counter() - started)
        return finished, replace(layer, row=finished)

    def _measure(self, source: MatrixSource, row: LayerRow) -> Layer:
        spectra, digest, reused = self._spectra(source)
        metrics = measure(spectra, self.recipe, self.baselines)
        tail = Facts(spectra, self.recipe).tail
        spectrum = spectra.spectrum
        done = replace(
            row,
            status=tail.status,
            reason="; ".join(filter(None, (source.note, tail.remedy))),
            solver=spectrum.solver,
            error_bound=spectrum.error_bound,
            digest=digest,
            reused=reused,
            metrics=metrics,
        )
        return Layer(done, spectrum, spectra.permuted, spectra.windows)

    def _spectra(self, source: MatrixSource) -> tuple[Spectra, str, bool]:
        keys = _Keys(self.recipe)
        identity = self._identity(source)
        known = self.cache.note("digests", identity) if identity else None
        if isinstance(known, list) and (found := self._all_known(keys, known)) is not None:
            return found, _joined(known), True
        block_bytes = BLOCK_BYTES if self.checkpoint.local else REMOTE_BLOCK_BYTES
        again = self.recipe.randomize > 0 or self.recipe.uses_windows
        matrices = [
            HashedMatrix(matrix, hold=self._hold(source), keep=again, block_bytes=block_bytes)
            for matrix in load(source, self.checkpoint)
        ]
        digests = [matrix.digest for matrix in matrices]
        if identity:
            self.cache.keep_note("digests", identity, digests)
        if (found := self._all_known(keys, digests)) is not None:
            return found, _joined(digests), True
        return self._solve(matrices, keys), _joined(digests), False

    def is_known(self, source: MatrixSource) -> bool:
        """Whether every spectrum of `source` is in the cache, told without reading a weight."""
        identity = self._identity(source)
        known = self.cache.note("digests", identity) if identity else None
        return isinstance(known, list) and self._all_known(_Keys(self.recipe), known) is not None

    def _hold(self, source: MatrixSource) -> bool:
        return source.nbytes <= HOLD_BYTES or not self.checkpoint.local

    def _identity(self, source: MatrixSource) -> str | None:
        parts = [self.checkpoint.identity(name) for name in source.tensors]
        if not parts or None in parts:
            return None
        return key_of("identity", parts, repr(source))

    def _all_known(self, keys: _Keys, digests: list[str]) -> Spectra | None:
        """The spectra of matrices with these digests, if every one is in the cache."""
        replicas = range(self.recipe.randomize)
        weights = [self.cache.spectrum(keys.weights(digest)) for digest in digests]
        permuted = [self.cache.spectrum(keys.permuted(digest, replica)) for replica in replicas for digest in digests]
        windows = [self.cache.spectrum(keys.windows(digest)) for digest in digests if self.recipe.uses_windows]
        if not (_complete(weights) and _complete(permuted) and _complete(windows)):
            return None
        count = len(digests)
        return _pooled(weights, [permuted[i * count : (i + 1) * count] for i in replicas], windows)

    def _solve(self, matrices: list[HashedMatrix], keys: _Keys) -> Spectra:
        weights, permuted, windows = [], [], []
        for matrix in matrices:
            weights.append(self._kept(keys.weights(matrix.digest), partial(self._solve_one, matrix)))
        for replica in range(self.recipe.randomize):
            permuted.append(
                [self._kept(keys.permuted(m.digest, replica), partial(self._permuted, m, replica)) for m in matrices]
            )
        if self.recipe.uses_windows:
            windows = [self._kept(keys.windows(m.digest), partial(self._windows, m)) for m in matrices]
        return _pooled(weights, permuted, windows)

    def _kept(self, key: str, compute: Callable[[], Spectrum]) -> Spectrum:
        spectrum = self.cache.spectrum(key)
        if spectrum is None:
            spectrum = compute()
            self.cache.keep_spectrum(key, spectrum)
        return spectrum

    def _solve_one(self, matrix: HashedMatrix) -> Spectrum:
        return solve(matrix, precision=self.recipe.precision, device=self.device)

    def _permuted(self, matrix: HashedMatrix, replica: int) -> Spectrum:
        return permuted_spectrum(matrix, seed=self.recipe.seed, replica=replica, device=self.device)

    def _windows(self, matrix: HashedMatrix) -> Spectrum:
        recipe = self.recipe
        return window_spectrum(
            matrix,
            seed=recipe.seed,
            window=recipe.farms_window,
            count=recipe.farms_windows,
            precision=recipe.precision,
            device=self.device,
        )


class _Keys:
    """Cache keys of the spectra that a recipe asks for."""

    def __init__(self, recipe: Recipe) -> None:
        self._recipe = recipe

    def weights(self, digest: str) -> str:
        return key_of("weights", digest, self._recipe.precision)

    def permuted(self, digest: str, replica: int) -> str:
        return key_of("permuted", digest, self._recipe.seed, replica)

    def windows(self, digest: str) -> str:
        recipe = self._recipe
        return key_of("windows", digest, recipe.precision, recipe.seed, recipe.farms_window, recipe.farms_windows)


def _pooled(weights: list[Spectrum], permuted: list[list[Spectrum]], windows: list[Spectrum]) -> Spectra:
    return Spectra(pool(weights), tuple(map(pool, permuted)), pool(windows) if windows else None)


def _complete(found: list[Spectrum | None]) -> TypeGuard[list[Spectrum]]:
    return None not in found


def _joined(digests: list[str]) -> str:
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def row_of(source: MatrixSource) -> LayerRow:
    """What is known of a matrix before it is read."""
    return LayerRow(
        name=source.name,
        role=source.role,
        block=source.block,
        kind=source.kind,
        rows=source.rows,
        cols=source.cols,
        slices=len(source.views),
        dtype=source.dtype,
        status="FAILED",
        tensors=source.tensors,
        nbytes=source.nbytes,
    )
