"""A folder that appears whole or not at all: written beside its place, then renamed."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Self

from filelock import FileLock, Timeout

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.locks import let_go, take

#: What shows that a folder holds a model, so that `force` may replace it.
_MODEL_FILES = ("config.json", "*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "*.gguf")


def check_output(output: Path, *, force: bool, source: Path | None = None) -> None:
    """`UsageError` where `output` may not be written: before any work is done.

    `force` replaces a folder only if it is empty or holds a model. The model that is read is never replaced.
    """
    if source is not None and _same(output, source):
        what = "is the model that is read" if output.resolve() == source.resolve() else "holds the model that is read"
        raise UsageError(what, where=output, fix="choose another output")
    if not output.exists() and not output.is_symlink():
        return
    if not output.is_dir() or output.is_symlink():
        raise UsageError("is there and is no folder", where=output, fix="choose another output")
    if not force and any(output.iterdir()):
        raise UsageError("is there already", where=output, fix="choose another output, or replace it with --force")
    if any(output.iterdir()) and not any(any(output.glob(pattern)) for pattern in _MODEL_FILES):
        raise UsageError("holds other things than a model", where=output, fix="choose another output")


def _same(output: Path, source: Path) -> bool:
    one, other = output.resolve(), source.resolve()
    return one == other or one in other.parents


class Draft:
    """A folder beside `target` that takes its place on `commit`.

    What is in `kept` outlives an error or a kill, and is there again in the next draft for the same target if its
    `key` is the same; all else is removed. Two drafts for one target cannot be open at once. Without `force`, a
    target that another run has written since `check_output` is an error too.
    """

    def __init__(
        self, target: str | os.PathLike[str], *, key: str = "", resume: bool = True, force: bool = True
    ) -> None:
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - a symlink in the path stays one
        self.folder = self.target.with_name(f".{self.target.name}.tailwise")
        self.kept = self.folder / "kept"
        self._old = self.target.with_name(f".{self.target.name}.tailwise-old")
        self._key, self._resume, self._force = key, resume, force
        place = self.folder.with_suffix(".tailwise-lock")
        self._lock = FileLock(place, blocking=False, thread_local=False, fallback_to_soft=False)
        self._committed = False

    def __enter__(self) -> Self:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            self._clean_up()
            if not self._force:
                check_output(self.target, force=False)
            self.kept.mkdir(parents=True, exist_ok=True)
            (self.kept / "key").write_text(self._key)
        except UsageError:
            let_go(self._lock)
            raise
        except OSError as error:
            let_go(self._lock)
            raise could_not_write(error, self.target) from error
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._committed:
                self._remove_all_but_kept()
        finally:
            let_go(self._lock)
        if isinstance(error, OSError) and error.errno is not None:
            raise could_not_write(error, self.target) from error

    @property
    def has_kept(self) -> bool:
        """Whether `kept` holds anything."""
        return any(path.name != "key" for path in self.kept.iterdir())

    def commit(self) -> None:
        """Put the folder in its place, in place of what is there."""
        shutil.rmtree(self.kept)
        if self.target.exists():
            self.target.rename(self._old)
        try:
            self.folder.rename(self.target)
        except OSError:
            if self._old.exists():
                self._old.rename(self.target)
            raise
        self._committed = True
        shutil.rmtree(self._old, ignore_errors=True)

    def _clean_up(self) -> None:
        if self._old.exists():  # killed between two renames
            if self.target.exists():
                shutil.rmtree(self._old)
            else:
                self._old.rename(self.target)
        if not self.folder.exists():
            return
        known = self.kept / "key"
        if self._resume and known.is_file() and known.read_text() == self._key:
            self._remove_all_but_kept()
        else:
            shutil.rmtree(self.folder)

    def _remove_all_but_kept(self) -> None:
        if not self.folder.exists():
            return
        if not self.kept.exists() or not self.has_kept:
            shutil.rmtree(self.folder, ignore_errors=True)
            return
        for path in self.folder.iterdir():
            if path != self.kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _take_lock(self) -> None:
        try:
            take(self._lock)
        except Timeout as error:
            raise UsageError("another run is writing it", where=self.target, fix="wait, or choose another") from error


def check_space(target: Path, nbytes: int) -> None:
    """`UsageError` where the disk has no room for `nbytes`, told before hours of work."""
    place = Path(os.path.abspath(target))  # noqa: PTH100 - as above
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < nbytes:
        raise UsageError(
            f"takes {_size(nbytes)} and the disk has {_size(free)} left",
            where=target,
            fix="free space there, or choose another place",
        )


def _size(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB" if nbytes >= 1e9 else f"{nbytes / 1e6:.1f} MB"


def could_not_write(error: OSError, where: Path) -> UnreadableError:
    """The error for a full disk, a folder without permission, and their like."""
    return UnreadableError(
        f"could not write: {error.strerror or error}",
        where=where,
        fix="free space there, or choose another place; finished blocks are kept, and the same command goes on",
    )
