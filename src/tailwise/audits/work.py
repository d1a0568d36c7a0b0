"""One work item of an audit: a matrix is read once, hashed, solved unless its spectrum is known, and measured."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import starmap
from typing import TYPE_CHECKING, Any, TypeGuard

from tailwise.audits.ahead import ReadAhead
from tailwise.audits.cache import Baselines, Cache, key_of
from tailwise.audits.rows import Layer, LayerRow, raised_by
from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.core.errors import TailwiseError, UnreadableError, lacks_memory
from tailwise.core.execution.executor import own_stream
from tailwise.core.kept import kept_property
from tailwise.core.recipe import BlasAsked, Recipe
from tailwise.core.storage import ensure_room
from tailwise.spectrum.metrics.facts import LARGEST_NOISE, Facts, Spectra, metrics_of
from tailwise.spectrum.sampling import permuted_spectrum, window_spectrum
from tailwise.spectrum.solve import NotFiniteError, OutOfRangeError, solve
from tailwise.spectrum.solvers.blas import HERE, BlasChoice
from tailwise.spectrum.solvers.gram import BLOCK_BYTES, Reduce
from tailwise.spectrum.solvers.symmetric import SolverChoice
from tailwise.spectrum.solvers.together import Together
from tailwise.spectrum.spectrum import Spectrum, pool
from tailwise.spectrum.trust import unit_of

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint
    from tailwise.checkpoints.matrices import WeightMatrix

#: Matrices up to this size are held between hashing and solving; larger local ones are read twice instead.
HOLD_BYTES = 256 << 20
#: Bytes asked for at once from a remote address, where every request is a round trip.
REMOTE_BLOCK_BYTES = 64 << 20


@dataclass
class Worker:
    """What every work item of one audit shares."""

    checkpoint: Checkpoint
    recipe: Recipe
    device: str
    cache: Cache
    baselines: Baselines
    stop: threading.Event = field(default_factory=threading.Event)
    failed: Callable[[Exception], None] = field(default=lambda _: None)  # told of what a row was not measured for
    blas: BlasChoice = HERE
    ahead: ReadAhead | None = None  # of a remote checkpoint

    def __call__(self, source: MatrixSource) -> tuple[LayerRow, Layer | None]:
        """The row of `source`, and its layer where it could be measured. Never raises for a bad matrix."""
        row, started = row_of(source), time.perf_counter()
        if self.stop.is_set():
            return replace(row, status="FAILED", reason="the audit was stopped"), None
        try:
            with own_stream(self.device):
                layer = self._measure(source, row)
        except Exception as error:
            self.failed(error)
            status, reason = failure(error)
            return replace(row, status=status, reason=reason, seconds=time.perf_counter() - started), None
        finished = replace(layer.row, seconds=time.perf_counter() - started)
        return finished, replace(layer, row=finished)

    def _measure(self, source: MatrixSource, row: LayerRow) -> Layer:
        again = self.recipe.randomize > 0 or self.recipe.uses_windows
        if source.by_factors and not again:
            ensure_room(memory_of_factors(source))
        else:
            ensure_room(4 * max(source.nbytes, 8 * source.m**2))
        spectra, digest, reused = self._spectra(source)
        facts = Facts(replace(spectra, unit=unit_of(row.dtype)), self.recipe, self.baselines)
        metrics = metrics_of(facts)
        tail = facts.tail
        spectrum = spectra.spectrum
        done = replace(
            row,
            status=tail.status,
            reason="; ".join(
                filter(
                    None, (source.note, _without_noise(source), tail.remedy, *starmap(raised_by, facts.raised.items()))
                )
            ),
            solver=spectrum.solver,
            error_bound=spectrum.error_bound,
            digest=digest,
            reused=reused,
            degenerate=tuple(
                name for name, fit in (("alpha", tail), ("alpha_hill", facts.hill)) if not fit.ok and name in metrics
            ),
            metrics=metrics,
        )
        return Layer(done, spectrum, spectra.permuted, spectra.windows)

    def _spectra(self, source: MatrixSource) -> tuple[Spectra, str, bool]:
        keys = _Keys(self.recipe)
        identity = self._identity(source)
        known = self.cache.note("digests", identity) if identity else None
        if isinstance(known, list) and (complete := self._all_known(keys, known)) is not None:
            return complete, _joined(known), True
        with self._opened(source) as checkpoint:
            return self._read(source, checkpoint, keys, identity)

    def _opened(self, source: MatrixSource) -> AbstractContextManager[Checkpoint]:
        return nullcontext(self.checkpoint) if self.ahead is None else self.ahead.opened(source)

    def _read(
        self, source: MatrixSource, checkpoint: Checkpoint, keys: _Keys, identity: str | None
    ) -> tuple[Spectra, str, bool]:
        block_bytes = BLOCK_BYTES if self.checkpoint.local else REMOTE_BLOCK_BYTES
        again = self.recipe.randomize > 0 or self.recipe.uses_windows
        matrices = [
            HashedMatrix(matrix, hold=self._hold(source), keep=again, block_bytes=block_bytes)
            for matrix in load(source, checkpoint)
        ]
        if source.kind == "lora" and source.m > LARGEST_NOISE and (again or any(m.factors is None for m in matrices)):
            raise UnreadableError(
                f"its {source.rows} × {source.cols} entries are far more than the file holds, and would all be made",
                where=source.name,
                fix="leave out permutations and windows; merge what is no plain product into its base",
            )
        digests = [matrix.digest for matrix in matrices]
        if identity:
            self.cache.keep_note("digests", identity, digests)
        if (complete := self._all_known(keys, digests)) is not None:
            return complete, _joined(digests), True
        computed: list[str] = []
        complete = self._solve(matrices, keys, computed)
        return complete, _joined(digests), not computed

    def is_known(self, source: MatrixSource) -> bool:
        """Whether every spectrum of `source` is in the cache, told without reading a weight."""
        identity = self._identity(source)
        known = self.cache.note("digests", identity) if identity else None
        return isinstance(known, list) and self._all_known(_Keys(self.recipe), known) is not None

    def _hold(self, source: MatrixSource) -> bool:
        # What is in memory already is read twice for nothing.
        return not self.checkpoint.resident and (source.nbytes <= HOLD_BYTES or not self.checkpoint.local)

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

    def _solve(self, matrices: list[HashedMatrix], keys: _Keys, computed: list[str]) -> Spectra:
        """The spectra of `matrices`; those that nobody else computed meanwhile have their keys added to `computed`."""
        solved = partial(self._kept, computed)
        weights, permuted, windows = [], [], []
        for matrix in matrices:
            weights.append(solved(keys.weights(matrix.digest), partial(self._solve_one, matrix)))
        for replica in range(self.recipe.randomize):
            permuted.append(
                [solved(keys.permuted(m.digest, replica), partial(self._permuted, m, replica)) for m in matrices]
            )
        if self.recipe.uses_windows:
            windows = [solved(keys.windows(m.digest), partial(self._windows, m)) for m in matrices]
        return _pooled(weights, permuted, windows)

    def _kept(self, computed: list[str], key: str, compute: Callable[[], Spectrum]) -> Spectrum:
        # Fine-tuned models that are audited side by side meet at the tensors they share.
        with self.cache.alone(key):
            spectrum = self.cache.spectrum(key)
            if spectrum is None:
                spectrum = compute()
                computed.append(key)
                self.cache.keep_spectrum(key, spectrum)
        return spectrum

    def _solve_one(self, matrix: HashedMatrix) -> Spectrum:
        blas = self.blas(min(matrix.rows, matrix.cols), self.recipe.precision) if self.device == "cpu" else None
        return solve(matrix, precision=self.recipe.precision, device=self.device, reduce=self._reduce, blas=blas)

    @kept_property
    def _reduce(self) -> Reduce | None:
        """On a GPU, matrices of one size are reduced together, by what was measured to be fastest there."""
        if not self.device.startswith("cuda"):
            return None
        return Together(SolverChoice(*_noted(self.cache, "solver")))

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


def blas_of(asked: BlasAsked, cache: Cache) -> BlasChoice:
    """Whose products and reductions are taken on a CPU; what is measured for it is kept in the cache."""
    return BlasChoice(asked, *_noted(cache, "blas"))


def _noted(cache: Cache, what: str) -> tuple[Callable[[str], Any], Callable[[str, Any], None]]:
    """How to look up and to keep what was measured of solvers."""
    return (
        lambda case: cache.note("solvers", key_of(what, case)),
        lambda case, seconds: cache.keep_note("solvers", key_of(what, case), seconds),
    )


def memory_of_factors(source: MatrixSource) -> int:
    """Bytes that the spectrum of a product takes, from its factors: copies of both in float64, and the eigenvalues."""
    return 24 * source.nbytes + 64 * source.m


def _without_noise(source: MatrixSource) -> str:
    if source.m <= LARGEST_NOISE:
        return ""
    return f"not compared with noise: its short side is beyond {LARGEST_NOISE}, which no noise is made of"


def failure(error: Exception) -> tuple[str, str]:
    """The status and reason of a row that could not be measured."""
    if isinstance(error, NotFiniteError):
        return "NOT_FINITE", f"{error}; find the step that made it, or repair the checkpoint"
    if isinstance(error, OutOfRangeError):
        return "UNSUPPORTED", str(error)
    if isinstance(error, TailwiseError):
        return "UNREADABLE", str(error)
    if lacks_memory(error):
        return "FAILED", "out of memory; use fewer workers"
    return "FAILED", f"{type(error).__name__}: {error}"


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


def _complete(spectra: list[Spectrum | None]) -> TypeGuard[list[Spectrum]]:
    return None not in spectra


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
        reading=f"{source.reading}/{source.version}" if source.version > 1 else source.reading,
        input_axis=source.input_axis,
        nbytes=source.nbytes,
    )


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
        if self.factors is not None:
            return _digest_of_factors(self.factors)
        state = hashlib.sha256(f"{self.rows}×{self.cols}".encode())
        held: list[torch.Tensor] = []
        for index, block in enumerate(self._matrix.row_blocks(self._block_bytes)):
            if index == 0:
                state.update(str(block.dtype).encode())
            state.update(_bytes_of(block))
            if self._hold:
                # A few columns of a wide block would keep all of it alive.
                held.append(block.clone() if _is_part(block) else block)
        self._held = held if held else None
        return state.hexdigest()


def _is_part(block: torch.Tensor) -> bool:
    return bool(block.untyped_storage().nbytes() > 2 * block.numel() * block.element_size())


def _digest_of_factors(factors: tuple[torch.Tensor, torch.Tensor]) -> str:
    state = hashlib.sha256(b"factors")
    for factor in factors:
        state.update(f"{tuple(factor.shape)} {factor.dtype}".encode())
        state.update(_bytes_of(factor))
    return state.hexdigest()


def _bytes_of(block: torch.Tensor) -> memoryview:
    import torch

    flat = block.detach().to("cpu").contiguous().flatten()
    return memoryview(flat.view(torch.uint8).numpy())  # type: ignore[arg-type]  # numpy's stubs lack Buffer
