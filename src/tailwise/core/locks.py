"""One at a time by name: among the threads of a process, and among the processes that share a folder."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none: processes there may compute the same thing twice, which harms nothing
    fcntl = None  # type: ignore[assignment]

_GUARD = threading.Lock()
_LOCKS: dict[str, tuple[threading.Lock, int]] = {}


@contextmanager
def held(key: str, folder: Path | None) -> Iterator[None]:
    """Hold `key`; with a folder, also against other processes that share it.

    The system lets go of what a killed process held. A folder that takes no locks holds nobody back.
    """
    with _among_threads(f"{folder} {key}"):
        if folder is None or fcntl is None:
            yield
            return
        with _among_processes(folder / "locks" / key):
            yield


@contextmanager
def _among_threads(key: str) -> Iterator[None]:
    with _GUARD:
        lock, users = _LOCKS.get(key, (threading.Lock(), 0))
        _LOCKS[key] = (lock, users + 1)
    try:
        with lock:
            yield
    finally:
        with _GUARD:
            lock, users = _LOCKS[key]
            if users == 1:
                del _LOCKS[key]
            else:
                _LOCKS[key] = (lock, users - 1)


@contextmanager
def _among_processes(path: Path) -> Iterator[None]:
    file = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("wb")
        # Not record locks: those look for deadlocks by process, and find some where threads have none.
        fcntl.flock(file, fcntl.LOCK_EX)
    except OSError:
        pass  # on a full or read-only disk the work is done all the same
    try:
        yield
    finally:
        if file is not None:
            # One who waits on a file that is gone finds the result when it looks again.
            with contextlib.suppress(OSError):
                path.unlink()
            with contextlib.suppress(OSError):
                # A process that was forked meanwhile has the file open, too, and would go on holding the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
            file.close()
