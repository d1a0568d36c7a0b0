"""One at a time by name: among the threads of a process, and among the processes that share a folder."""

from __future__ import annotations

import errno
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import BaseFileLock, FileLock

#: What a file system says that takes no locks.
_TAKES_NONE = frozenset({errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP})

_GUARD = threading.Lock()
_LOCKS: dict[str, tuple[threading.Lock, int]] = {}


@contextmanager
def held(key: str, folder: Path | None) -> Iterator[None]:
    """Hold `key`; with a folder, also against other processes that share it.

    The system lets go of what a killed process held. A folder that takes no locks holds nobody back.
    """
    with _among_threads(f"{folder} {key}"):
        if folder is None:
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
    lock = FileLock(path, fallback_to_soft=False)
    with suppress(OSError):  # on a full or read-only disk the work is done all the same
        path.parent.mkdir(parents=True, exist_ok=True)
        take(lock)
    try:
        yield
    finally:
        let_go(lock)


def take(lock: BaseFileLock) -> None:
    """Acquire a lock. Where the file system takes none, it stays unlocked and leaves no file.

    Raises `filelock.Timeout` where another has it and the lock does not wait, `OSError` where its file cannot be made.
    """
    try:
        lock.acquire()
    except OSError as error:
        if error.errno not in _TAKES_NONE:
            raise
        Path(lock.lock_file).unlink(missing_ok=True)


def let_go(lock: BaseFileLock) -> None:
    """Release a lock, if it is held, and remove its file, which the library leaves on POSIX systems.

    Who waits for it then opens the next file: the library looks whether the one that it locked is still there.
    """
    if lock.is_locked:
        with suppress(OSError):
            Path(lock.lock_file).unlink()  # while it is held, so that it cannot be another's
        with suppress(OSError):
            lock.release()
