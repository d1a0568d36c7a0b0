"""One queue, one server: several may share a folder for their state."""

from __future__ import annotations

import contextlib
import os
import weakref
from pathlib import Path

_SERVERS = 100


class Claim:
    """A folder for jobs that no other server works on, as long as this one lives."""

    def __init__(self, folder: Path) -> None:
        """Take `jobs`, or `jobs-2` and so on where servers that run have those."""
        self.folder, self._release = folder / "jobs", None
        for candidate in _folders(folder):
            handle = _locked(candidate)
            if handle is not None:
                self.folder, self._release = candidate, weakref.finalize(self, os.close, handle)
                self._adopt(folder)
                return

    def _adopt(self, folder: Path) -> None:
        """Take what servers left that are gone."""
        for other in _folders(folder):
            handle = _locked(other) if other != self.folder and other.is_dir() else None
            if handle is None:
                continue
            with contextlib.suppress(OSError):
                for pattern in ("*.audit", "*.json"):  # in this order: a job without its file is one that wrote none
                    for path in other.glob(pattern):
                        path.replace(self.folder / path.name)
            os.close(handle)

    def release(self) -> None:
        """Leave it to the next server."""
        if self._release is not None:
            self._release()


def _folders(folder: Path) -> list[Path]:
    return [folder / ("jobs" if number == 1 else f"jobs-{number}") for number in range(1, _SERVERS)]


def _locked(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Not inherited by what this process starts: an orphan must not hold it.
        handle = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError:  # a disk that is full or may not be written: the queue is not kept at all
        return None
    try:
        import fcntl

        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:  # elsewhere than on POSIX systems, servers are not told apart
        return handle
    except OSError:
        os.close(handle)
        return None
    return handle
