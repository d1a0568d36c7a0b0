"""An end to what a file may ask of SQLite: pages that point to one another can stand for rows without number."""

from __future__ import annotations

import sqlite3
from pathlib import Path

#: Steps of SQLite's machine from one look to the next, and those that any statement may take; a row takes about ten.
_STRIDE, _STEPS = 20_000, 5_000_000
#: More steps for every byte of the file: a history's rows take a hundred bytes and more.
_STEPS_A_BYTE = 20
#: Bytes of a file whose pages are looked through when it is opened; more takes longer than a second.
_LOOKED_THROUGH = 256 << 20


class BoundedWork:
    """Ends a statement of a connection that takes more steps than a file of this size can need: "interrupted".

    With `grows` the steps go by the size of the file; without, they are few, which do for looking at a schema.
    """

    def __init__(self, raw: sqlite3.Connection, path: Path, *, grows: bool = True) -> None:
        self._path, self._grows = path, grows
        self._done = self._most = 0
        self.begin()
        raw.set_progress_handler(self._look, _STRIDE)

    def begin(self) -> None:
        """Count anew, for the next statement."""
        self._done, self._most = 0, _STEPS

    def _look(self) -> bool:
        self._done += _STRIDE
        if self._done <= self._most:
            return False
        if self._grows:
            self._most = _STEPS + _STEPS_A_BYTE * sum(
                map(_size, (self._path, self._path.with_name(f"{self._path.name}-wal")))
            )
        return self._done > self._most


def check_pages(cursor: sqlite3.Cursor, path: Path) -> None:
    """`sqlite3.DatabaseError` where a page is used twice or a chain of pages is a ring, in a file that is not large."""
    if _size(path) <= _LOOKED_THROUGH:
        (found,) = cursor.execute("PRAGMA quick_check(1)").fetchone()
        if found != "ok":
            raise sqlite3.DatabaseError(f"malformed: {' '.join(str(found).split())[:200]}")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
