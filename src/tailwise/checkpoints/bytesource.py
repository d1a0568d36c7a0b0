"""Files as numbered bytes: read a range into a buffer, from a local disk or (in other modules) from afar."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from functools import cached_property
from pathlib import Path

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import open_descriptor

#: A single `preadv` moves at most 2 GiB on Linux, so the loop asks for no more.
_MAX_READ = 1 << 30


class ByteSource(ABC):
    """One file that is read by byte ranges. Thread-safe. Errors are `UnreadableError`."""

    name: str  # for messages: the path or URL
    size: int  # bytes
    local: bool = False  # whether reading twice is cheap

    @abstractmethod
    def read_into(self, buffer: memoryview, offset: int) -> None:
        """Fill `buffer` (bytes, writable) from `offset`; a file that ends before is an `UnreadableError`."""

    def read(self, offset: int, nbytes: int) -> bytes:
        """The bytes `offset:offset + nbytes`."""
        data = bytearray(nbytes)
        self.read_into(memoryview(data), offset)
        return bytes(data)

    @cached_property
    def head(self) -> bytes:
        """The first bytes, which tell the format; kept, since from afar each read is a round trip."""
        return self.read(0, min(self.size, 64))

    def identity(self) -> str | None:
        """What changes when the file's content changes, known without reading it, or None."""
        return None

    @abstractmethod
    def local_path(self) -> Path:
        """A file on a local disk with the same bytes; afar, this downloads the whole file."""

    def close(self) -> None:  # noqa: B027 - most sources hold nothing open
        """Release what is held open. Reading afterwards is an `UnreadableError`."""


class LocalFile(ByteSource):
    """A file on a local disk, read through one descriptor.

    Not memory-mapped: pages of a mapping count as the process's memory, and a block should cost one block.
    """

    local = True

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.name = str(self.path)
        try:
            self._fd = open_descriptor(self.path)
        except (OSError, ValueError) as error:
            raise os_error(error, self.name) from error
        status = os.fstat(self._fd)
        self.size = status.st_size
        self._stamp = (status.st_size, status.st_mtime_ns)
        self._absolute = self.path.absolute()  # another process may work in another folder
        # Change time and inode tell a file from one put in its place with its size and modification time.
        self._identity = ":".join(
            map(str, (os.path.realpath(self.path), *self._stamp, status.st_ctime_ns, status.st_ino))
        )

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See `ByteSource`."""
        if self._fd < 0:
            raise UnreadableError("is closed", where=self.name, fix="open the checkpoint again")
        done = 0
        while done < len(buffer):
            try:
                got = _read_at(self._fd, buffer[done : done + _MAX_READ], offset + done)
            except OSError as error:
                raise os_error(error, self.name) from error
            if got == 0:
                raise shrank(self.name, offset + done)
            done += got
        status = os.fstat(self._fd)
        if (status.st_size, status.st_mtime_ns) != self._stamp:
            raise UnreadableError("has changed since it was opened", where=self.name, fix="let its writer finish")

    def identity(self) -> str:
        """Path, size and modification time when it was opened."""
        return self._identity

    def local_path(self) -> Path:
        """The file itself."""
        return self.path

    def close(self) -> None:
        """See `ByteSource`."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()

    def __reduce__(self) -> tuple[object, tuple[Path, str]]:
        return _reopen, (self._absolute, self._identity)


_SEEKING = threading.Lock()


def _read_by_seeking(descriptor: int, buffer: memoryview, offset: int) -> int:
    """For Windows and older macOS, which have no `preadv`."""
    with _SEEKING:  # the place in a file is one for all threads
        os.lseek(descriptor, offset, os.SEEK_SET)
        data = os.read(descriptor, len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _read_in_place(descriptor: int, buffer: memoryview, offset: int) -> int:
    return os.preadv(descriptor, [buffer], offset)


_read_at = _read_in_place if hasattr(os, "preadv") else _read_by_seeking


def _reopen(path: Path, identity: str) -> LocalFile:
    """The same file in another process; offsets that were read from it hold only while it is unchanged."""
    file = LocalFile(path)
    if file.identity() != identity:
        file.close()
        raise UnreadableError("has changed since it was opened", where=path, fix="open it again")
    return file


def shrank(name: str, offset: int) -> UnreadableError:
    """The error for a file that ends earlier than it did when it was opened."""
    return UnreadableError(
        f"ends at byte {offset}, earlier than when it was opened",
        where=name,
        fix="something is still writing it, or a download was cut off: wait or download it again",
    )


def os_error(error: Exception, name: str) -> UnreadableError:
    """An operating-system error as an `UnreadableError` that says what to do."""
    if isinstance(error, FileNotFoundError):
        return UnreadableError("no such file or directory", where=name, fix="check the path")
    if isinstance(error, PermissionError):
        return UnreadableError(
            "permission denied", where=name, fix="make it readable for this user (chmod +r), or ask its owner"
        )
    if isinstance(error, OSError) and error.strerror:
        return UnreadableError(error.strerror.lower(), where=name, fix="check the path and the disk")
    return UnreadableError(str(error) or type(error).__name__, where=name, fix="check the path")
