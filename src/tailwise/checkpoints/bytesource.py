"""Files as numbered bytes: read a range into a buffer, from a local disk or (in other modules) a remote one."""

from __future__ import annotations

import errno
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

from typing_extensions import override

from tailwise.checkpoints.within import check_within
from tailwise.core.errors import UnreadableError
from tailwise.core.kept import kept_property
from tailwise.core.storage import json_of, mended, open_descriptor

#: A single `preadv` moves at most 2 GiB on Linux, so the loop asks for no more.
_MAX_READ = 1 << 30

#: Requests under way at once. Stores answer many; more would only share the line.
AT_ONCE = 16


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

    @kept_property
    def head(self) -> bytes:
        """The first bytes, which tell the format; kept, since remotely each read is a round trip."""
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

    @override
    def read_into(self, buffer: memoryview, offset: int) -> None:
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

    @override
    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # Where the interpreter ends, modules may be gone, and the system closes the file.
        if getattr(self, "_fd", -1) >= 0 and os is not None:
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


_MAX_JSON = 1 << 28


class Folder(ABC):
    """A folder whose files are opened by name. Errors are `UnreadableError`."""

    uri: str  # for messages and for the checkpoint
    revision: str | None = None
    listed: bool = True  # whether `names` knows every file

    @abstractmethod
    def names(self) -> frozenset[str]:
        """Names of the files directly in the folder."""

    @abstractmethod
    def subfolders(self) -> frozenset[str]:
        """Names of the folders directly in the folder."""

    @abstractmethod
    def source(self, name: str) -> ByteSource:
        """The file `name`, opened for reading by ranges."""

    def settings(self, name: str) -> ByteSource:
        """The same, of a file of settings: what it says may go into what is written, so `check_within`."""
        return self.source(name)

    def sources(self, names: Sequence[str]) -> list[ByteSource]:
        """Several files, all of them or none; side by side, for far away each costs several round trips."""
        with ThreadPoolExecutor(min(AT_ONCE, len(names) or 1)) as pool:
            asked = [pool.submit(self.source, name) for name in names]
        failed = next((one.exception() for one in asked if one.exception() is not None), None)
        if failed is None:
            return [one.result() for one in asked]
        for one in asked:
            if one.exception() is None:
                one.result().close()
        raise failed

    def inner(self, name: str) -> Folder | None:  # noqa: ARG002 - a hook
        """The folder `name` in it, where it can be opened at once."""
        return None

    @property
    def name(self) -> str:
        """The last part of its address."""
        return self.uri.rstrip("/").rpartition("/")[2]

    def beside(self) -> frozenset[str]:
        """Names of the folders beside it, where they are cheap to know."""
        return frozenset()

    def stamps(self) -> dict[str, tuple[int, float | None]]:
        """Size in bytes, and time of the last change where it is known, of every file directly in the folder."""
        return {}

    def json(self, name: str) -> dict[str, Any]:
        """The JSON object in the file `name`, which is of settings."""
        source = self.settings(name)
        try:
            if source.size > _MAX_JSON:
                raise UnreadableError(f"is {source.size} bytes, too large for a settings file", where=source.name)
            value = json_of(source.read(0, source.size))
        except (ValueError, RecursionError) as error:
            raise UnreadableError(
                f"is not valid JSON: {str(error)[:200]}",
                where=source.name,
                fix="download it again, or correct it",
            ) from error
        finally:
            source.close()
        if not isinstance(value, dict):
            raise UnreadableError(f"holds a JSON {type(value).__name__}, and an object was expected", where=source.name)
        document: dict[str, Any] = mended(value)
        return document


class LocalFolder(Folder):
    """A folder on a local disk, or a snapshot of a Hub model in the local cache."""

    def __init__(self, path: str | os.PathLike[str], *, uri: str | None = None, revision: str | None = None) -> None:
        self.path = Path(path)
        self.uri, self.revision = uri or str(self.path), revision
        try:
            with os.scandir(self.path) as entries:
                kinds = {entry.name: kind for entry in entries if (kind := _is_folder(entry)) is not None}
        except OSError as error:
            raise os_error(error, str(self.path)) from error
        self._names = frozenset(name for name, is_dir in kinds.items() if not is_dir)
        self._subfolders = frozenset(kinds) - self._names

    @override
    def names(self) -> frozenset[str]:
        return self._names

    @override
    def subfolders(self) -> frozenset[str]:
        return self._subfolders

    @override
    def inner(self, name: str) -> LocalFolder:
        return LocalFolder(self.path / name, uri=f"{self.uri.rstrip('/')}/{name}", revision=self.revision)

    @property
    @override
    def name(self) -> str:
        return self.path.absolute().name

    @override
    def beside(self) -> frozenset[str]:
        try:
            with os.scandir(self.path.absolute().parent) as entries:
                return frozenset(entry.name for entry in entries if entry.is_dir())
        except OSError:
            return frozenset()

    @override
    def sources(self, names: Sequence[str]) -> list[ByteSource]:
        with ExitStack() as opened:
            found = [opened.enter_context(closing(self.source(name))) for name in names]
            opened.pop_all()  # all of them are there
        return found

    @override
    def source(self, name: str) -> ByteSource:
        return LocalFile(self.path / name)

    @override
    def settings(self, name: str) -> ByteSource:
        source = self.source(name)  # first, for it says what is no file
        try:
            check_within(self.path, self.path / name)
        except UnreadableError:
            source.close()
            raise
        return source

    @override
    def stamps(self) -> dict[str, tuple[int, float | None]]:
        stamps: dict[str, tuple[int, float | None]] = {}
        for name in self._names:
            try:
                status = (self.path / name).stat()
            except FileNotFoundError:
                continue  # it went since the folder was listed, or is a link to what went
            except OSError as error:
                raise os_error(error, str(self.path / name)) from error
            stamps[name] = status.st_size, status.st_mtime
        return stamps


def _is_folder(entry: os.DirEntry[str]) -> bool | None:
    """Whether it is a folder; None for a link in a circle, which is neither folder nor file."""
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno == errno.ELOOP:
            return None
        raise


class UnlistedFolder(Folder):
    """A folder that cannot be listed (a web server's), of which one file is known."""

    listed = False

    def __init__(self, uri: str, file: str, opener: Callable[[str], ByteSource]) -> None:
        self.uri, self._file, self._opener = uri, file, opener

    @override
    def names(self) -> frozenset[str]:
        return frozenset({self._file})

    @override
    def subfolders(self) -> frozenset[str]:
        return frozenset()

    @override
    def source(self, name: str) -> ByteSource:
        return self._opener(name)
