"""Spectra kept by content, so that nothing unchanged is computed twice and an interrupted audit goes on.

A spectrum's key is a hash of the matrix's content and of what the solver was asked for; metrics and estimators are
not in it, since they are computed from the spectrum in milliseconds. Every file appears whole (written aside, then
renamed), so audits that run at once share the cache, and a damaged or vanished file is computed again.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tempfile
import threading
import tokenize
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, TypeGuard

import numpy as np
from typing_extensions import override

from tailwise.core.archives import DAMAGED_ARCHIVE
from tailwise.core.errors import TailwiseError, UnreadableError
from tailwise.core.locks import held
from tailwise.core.recipe import Recipe, RunOptions, digest_of
from tailwise.core.storage import get, is_url, joined, json_of, put
from tailwise.spectrum.metrics.facts import gaussian_baseline, window_shape
from tailwise.spectrum.power_law import ESTIMATORS
from tailwise.spectrum.spectrum import Spectrum

#: Raised when a solver changes its numbers, or what a spectrum says beside them: older entries are then left alone.
ENGINE = 3

#: What is kept of a spectrum beside its eigenvalues.
_FACTS = ("rows", "cols", "slices", "solver", "error_bound", "zero_vectors", "weak_vectors", "order_z")

#: What damaged bytes make numpy (whose headers are Python), zipfile and json raise.
_DAMAGE = (*DAMAGED_ARCHIVE, SyntaxError, tokenize.TokenError, TailwiseError)


def default_folder() -> Path:
    """$TAILWISE_CACHE, or `tailwise` in the user's cache folder."""
    if chosen := os.environ.get("TAILWISE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tailwise"


def chosen_url() -> str | None:
    """$TAILWISE_CACHE where it is a URL."""
    chosen = os.environ.get("TAILWISE_CACHE", "")
    return chosen if is_url(chosen) else None


def key_of(*parts: object) -> str:
    """A file name for what `parts` describe."""
    return digest_of([ENGINE, *parts])


class Cache:
    """A folder of spectra, of digests by file identity, and of baselines; local or at a URL. None keeps nothing.

    Every process that uses the folder shares what is in it, whatever the model: the keys are of content.
    """

    def __init__(self, folder: Path | str | None) -> None:
        self.folder = Path(folder) if isinstance(folder, str) and not is_url(folder) else folder
        self.trouble: str | None = None  # why the last write failed, if one did

    @classmethod
    def of(cls, options: RunOptions) -> Cache:
        """The cache that a run is to use."""
        return cls((options.cache_dir or chosen_url() or default_folder()) if options.use_cache else None)

    def spectrum(self, key: str) -> Spectrum | None:
        """The spectrum kept under `key`, or None."""
        data = self._read("spectra", key, ".npz")
        if data is None:
            return None
        try:
            with np.load(io.BytesIO(data), allow_pickle=False) as stored:
                return Spectrum(stored["eigenvalues"], **json_of(str(stored["facts"])))
        except _DAMAGE:
            return None

    def keep_spectrum(self, key: str, spectrum: Spectrum) -> None:
        """Keep `spectrum` under `key`; failing to is noted in `trouble`, and harms nothing."""
        facts = {name: getattr(spectrum, name) for name in _FACTS}
        sink = io.BytesIO()
        np.savez(sink, eigenvalues=spectrum.eigenvalues, facts=np.array(json.dumps(facts)))
        self._write("spectra", key, ".npz", sink.getvalue())

    def note(self, kind: str, key: str) -> Any:
        """A small JSON value (a digest, a baseline) kept under `key`, or None."""
        data = self._read(kind, key, ".json")
        try:
            return None if data is None else json_of(data)
        except ValueError:
            return None

    def keep_note(self, kind: str, key: str, value: Any) -> None:
        """Keep a small JSON value."""
        self._write(kind, key, ".json", json.dumps(value).encode())

    def alone(self, key: str) -> AbstractContextManager[None]:
        """While it is held, no other thread or process with this local folder computes what `key` stands for.

        At a URL it holds back only this process's other threads, and where nothing is kept, nobody.
        """
        if self.folder is None:
            return nullcontext()
        return held(key, self.folder if isinstance(self.folder, Path) else None)

    def _read(self, kind: str, key: str, suffix: str) -> bytes | None:
        if self.folder is None:
            return None
        where = joined(self.folder, kind, key[:2], key + suffix)
        try:
            return where.read_bytes() if isinstance(where, Path) else get(where)
        except (OSError, UnreadableError):
            return None

    def _write(self, kind: str, key: str, suffix: str, data: bytes) -> None:
        if self.folder is None:
            return
        where = joined(self.folder, kind, key[:2], key + suffix)
        try:
            if isinstance(where, Path):
                _put(where, data)
            else:
                put(where, data)
        except (OSError, UnreadableError) as error:
            why = error.what if isinstance(error, TailwiseError) else error.strerror or error
            self.trouble = f"the cache could not be written ({why}); nothing is lost but time"


def _put(path: Path, data: bytes) -> None:
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        Path(temporary).replace(path)
    except BaseException:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
        raise


class Carried(Cache):
    """A cache that a worker far away reads where it can, and whose new entries travel back in `spectra` and `notes`.

    Only the process that asked for an audit writes into the folder, so that a worker that is killed leaves no trace.
    """

    def __init__(self, folder: Path | str | None, notes: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(folder)
        self.spectra: dict[str, Spectrum] = {}
        self.notes: dict[tuple[str, str], Any] = {}
        self._known = notes or {}

    def alone(self, key: str) -> AbstractContextManager[None]:  # noqa: ARG002 - as of any cache
        """Nobody is held back: a lock far from the others would only leave files behind."""
        return nullcontext()

    @override
    def spectrum(self, key: str) -> Spectrum | None:
        return self.spectra.get(key) or super().spectrum(key)

    @override
    def keep_spectrum(self, key: str, spectrum: Spectrum) -> None:
        self.spectra[key] = spectrum

    @override
    def note(self, kind: str, key: str) -> Any:
        for known in (self.notes, self._known):
            if (kind, key) in known:
                return known[kind, key]
        return super().note(kind, key)

    @override
    def keep_note(self, kind: str, key: str, value: Any) -> None:
        self.notes[kind, key] = value


class Baselines:
    """Noise of each shape, computed once per shape and kept in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._known: dict[str, Mapping[str, tuple[float, float]]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def __call__(self, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        """As `gaussian_baseline`."""
        key = baseline_key(rows, cols, slices, recipe)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._known:
                self._known[key] = self._find(key, rows, cols, slices, recipe)
            return self._known[key]

    def _find(self, key: str, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        stored = self._cache.note("baselines", key)
        if _is_baseline(stored):
            return {name: (mean, sd) for name, (mean, sd) in stored.items()}
        computed = gaussian_baseline(rows, cols, slices, recipe)
        self._cache.keep_note("baselines", key, dict(computed))
        return computed


def baseline_key(rows: int, cols: int, slices: int, recipe: Recipe) -> str:
    """Where the noise of a shape is kept, as a note of the kind `baselines`."""
    shape = [max(rows, cols), min(rows, cols), slices, window_shape(recipe, rows, cols)]
    # By code too: a registered estimator may be another the next time its name is used.
    fits = [
        [recipe.estimator, _code_of(recipe.estimator)], [recipe.hill_estimator, _code_of(recipe.hill_estimator)],
        recipe.k_frac, recipe.max_fingers,
    ]  # fmt: skip
    return key_of("baseline", shape, fits, recipe.baseline_replicas, recipe.farms_windows, recipe.seed)


def _code_of(estimator: str) -> str:
    """A digest of the function of an estimator, as Python compiled it; "" where it has none."""
    code = getattr(ESTIMATORS.get(estimator.removeprefix("farms:")), "__code__", None)
    if code is None:
        return ""
    constants = [value for value in code.co_consts if isinstance(value, int | float | str)]
    return hashlib.sha256(code.co_code + repr((code.co_names, constants)).encode()).hexdigest()[:16]


def _is_baseline(stored: object) -> TypeGuard[dict[str, list[float]]]:
    return (
        isinstance(stored, dict)
        and set(stored) == {"alpha", "alpha_hill", "singular_entropy"}
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, float) for number in pair)
            for pair in stored.values()
        )
    )
