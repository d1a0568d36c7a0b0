"""Files in which points and alarms wait while their database is away."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

from filelock import lock_descriptor

from tailwise.audits.cache import default_folder
from tailwise.core.errors import UnreachableError
from tailwise.core.recipe import digest_of
from tailwise.core.storage import json_of
from tailwise.history.jsonl import Item, JsonlHistory, from_line

#: How the names of waiting files end.
SUFFIX = ".spool.jsonl"
#: Windows keeps everyone from a file that is locked, also who locked it: there a file beside the spool is locked.
#: Elsewhere it is the spool itself, since a process of 0.1 that has one, or looks for one, knows no other lock.
_LOCK_BESIDE = os.name == "nt"
#: Where lines go that the store will not take, so that they do not hold up the others.
REJECTED = "rejected.jsonl"


def folder_for(where: str, url: bool) -> Path:
    """Where a store's spools are kept: beside its file, or for a server in tailwise's cache folder."""
    return default_folder() / "spool" / digest_of(where)[:16] if url else Path(f"{where}.spool")


#: Number, text and content of a line; None for one that is damaged.
Line = tuple[int, bytes, Item | None]


class Spool:
    """One file of waiting lines. It is locked while a process has it; a process that dies leaves it unlocked."""

    def __init__(self, path: Path, lock: IO[bytes]) -> None:
        self.path, self._lock = path, lock
        self.key = path.name.removesuffix(SUFFIX)
        self._writer: JsonlHistory | None = None
        self.lines = sum(1 for _ in self._whole_lines())

    @classmethod
    def fresh(cls, folder: Path) -> Spool:
        """A new one. Raises `UnreachableError` where none can be written."""
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{secrets.token_hex(8)}{SUFFIX}"
            lock = _opened(path)
        except OSError as error:
            raise UnreachableError(
                f"points could not wait here: {error.strerror or error}",
                where=folder,
                fix="choose another spool folder",
            ) from error
        _locks(lock)
        return cls(path, lock)

    @classmethod
    def left_behind(cls, folder: Path) -> list[Spool]:
        """Spools whose processes have died, oldest first; they are this process's from now on."""
        spools = []
        for path in sorted(folder.glob(f"*{SUFFIX}"), key=_age):
            with suppress(OSError):
                lock = _opened(path)
                if _locks(lock) and path.exists():
                    spools.append(cls(path, lock))
                else:
                    lock.close()
        return spools

    def append(self, item: Item) -> None:
        """Add a line. Raises `UnreachableError` where the disk is full."""
        if self._writer is None:
            self._writer = JsonlHistory(self.path)
        self._writer.append(item)
        self.lines += 1

    def after(self, line: int, most: int) -> Iterator[Line]:
        """Up to `most` lines after the one of that number."""
        for number, text in enumerate(self._whole_lines(), 1):
            if line < number <= line + most:
                try:
                    yield number, text, from_line(text.decode())
                except ValueError:
                    yield number, text, None

    def _whole_lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n") or _is_whole(line):
                    yield line

    def reject(self, text: bytes) -> None:
        """Put a line aside."""
        with self.path.with_name(REJECTED).open("ab") as file:
            file.write(text.rstrip(b"\n") + b"\n")

    def remove(self) -> None:
        """Delete the file: all of it is in the store."""
        self.close()
        with suppress(OSError):
            self.path.unlink(missing_ok=True)

    def close(self) -> None:
        """Leave the file to whoever comes next."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
        self._lock.close()
        if _LOCK_BESIDE:
            with suppress(OSError):
                Path(self._lock.name).unlink()
        if self.lines == 0:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)


def _is_whole(line: bytes) -> bool:
    """Whether a last line lacks nothing but its end."""
    with suppress(ValueError):
        json_of(line)
        return True
    return False


def _age(path: Path) -> float:
    with suppress(OSError):
        return os.stat(path).st_mtime  # noqa: PTH116
    return 0.0


def _opened(path: Path) -> IO[bytes]:
    """A spool's file, made if it is not there, or the one beside it that is locked for it."""
    file = path.open("ab")
    if not _LOCK_BESIDE:
        return file
    file.close()
    return path.with_suffix(".lock").open("ab")


def _locks(file: IO[bytes]) -> bool:
    """Lock a file for this process. False where another has it."""
    try:
        return lock_descriptor(file.fileno(), blocking=False)
    except OSError:  # a file system without locks
        return True
