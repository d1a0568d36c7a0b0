"""Spectra kept by content, so that nothing unchanged is computed twice and an interrupted audit goes on.

A spectrum's key is a hash of the matrix's content and of what the solver was asked for; metrics and estimators are
not in it, since they are computed from the spectrum in milliseconds. Every file appears whole (written aside, then
renamed), so audits that run at once share the cache, and a damaged or vanished file is computed again.
"""

from __future__ import annotations

import json
import os
import tempfile
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tailwise.errors import TailwiseError
from tailwise.recipe import RunOptions, digest_of
from tailwise.spectrum.spectrum import Spectrum

#: Raised when a solver changes its numbers: older entries are then left alone.
ENGINE = 1


#: What damaged bytes make numpy, zipfile and json raise.
_DAMAGE = (
    OSError, ValueError, KeyError, TypeError, EOFError, RuntimeError, NotImplementedError, zipfile.BadZipFile,
    zlib.error, TailwiseError,
)  # fmt: skip


def default_folder() -> Path:
    """$TAILWISE_CACHE, or `tailwise` in the user's cache folder."""
    if chosen := os.environ.get("TAILWISE_CACHE"):
        return Path(chosen).expanduser()
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tailwise"


def key_of(*parts: object) -> str:
    """A file name for what `parts` describe."""
    return digest_of([ENGINE, *parts])


class Cache:
    """A folder of spectra, of digests by file identity, and of baselines. A folder of None keeps nothing."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self.trouble: str | None = None  # why the last write failed, if one did

    @classmethod
    def of(cls, options: RunOptions) -> Cache:
        """The cache that a run is to use."""
        return cls((options.cache_dir or default_folder()) if options.use_cache else None)

    def spectrum(self, key: str) -> Spectrum | None:
        """The spectrum kept under `key`, or None."""
        path = self._path("spectra", key, ".npz")
        if path is None:
            return None
        try:
            # Opened here, since np.load leaves the file of a damaged archive open.
            with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
                return Spectrum(stored["eigenvalues"], **json.loads(str(stored["facts"])))
        except _DAMAGE:
            return None

    def keep_spectrum(self, key: str, spectrum: Spectrum) -> None:
        """Keep `spectrum` under `key`; failing to is noted in `trouble`, and harms nothing."""
        facts = {name: getattr(spectrum, name) for name in ("rows", "cols", "slices", "solver", "error_bound")}
        self._write(
            self._path("spectra", key, ".npz"),
            lambda file: np.savez(file, eigenvalues=spectrum.eigenvalues, facts=np.array(json.dumps(facts))),
        )

    def note(self, kind: str, key: str) -> Any:
        """A small JSON value (a digest, a baseline) kept under `key`, or None."""
        path = self._path(kind, key, ".json")
        try:
            return None if path is None else json.loads(path.read_text())
        except (OSError, ValueError):
            return None

    def keep_note(self, kind: str, key: str, value: Any) -> None:
        """Keep a small JSON value."""
        self._write(self._path(kind, key, ".json"), lambda file: file.write(json.dumps(value).encode()))

    def _path(self, kind: str, key: str, suffix: str) -> Path | None:
        return None if self.folder is None else self.folder / kind / key[:2] / (key + suffix)

    def _write(self, path: Path | None, write: Any) -> None:
        if path is None:
            return
        temporary = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                write(file)
            Path(temporary).replace(path)
        except BaseException as error:
            if temporary is not None:
                Path(temporary).unlink(missing_ok=True)
            if not isinstance(error, OSError):
                raise
            self.trouble = f"the cache could not be written ({error.strerror or error}); nothing is lost but time"


class Carried(Cache):
    """A cache that a worker far away reads where it can, and whose new entries travel back in `spectra` and `notes`.

    Only the process that asked for an audit writes into the folder, so that a worker that is killed leaves no trace.
    """

    def __init__(self, folder: Path | None, notes: Mapping[tuple[str, str], Any] | None = None) -> None:
        super().__init__(folder)
        self.spectra: dict[str, Spectrum] = {}
        self.notes: dict[tuple[str, str], Any] = {}
        self._known = notes or {}

    def spectrum(self, key: str) -> Spectrum | None:
        """See `Cache`."""
        return self.spectra.get(key) or super().spectrum(key)

    def keep_spectrum(self, key: str, spectrum: Spectrum) -> None:
        """See `Cache`."""
        self.spectra[key] = spectrum

    def note(self, kind: str, key: str) -> Any:
        """See `Cache`."""
        for known in (self.notes, self._known):
            if (kind, key) in known:
                return known[kind, key]
        return super().note(kind, key)

    def keep_note(self, kind: str, key: str, value: Any) -> None:
        """See `Cache`."""
        self.notes[kind, key] = value
