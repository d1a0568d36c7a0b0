"""A folder of model files: on a local disk, in a bucket, on the Hub."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tailwise.checkpoints.bytesource import ByteSource, LocalFile, os_error
from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, mended

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
        """The JSON object in the file `name`."""
        source = self.source(name)
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
        found: dict[str, Any] = mended(value)
        return found


class LocalFolder(Folder):
    """A folder on a local disk, or a snapshot of a Hub model in the local cache."""

    def __init__(self, path: str | os.PathLike[str], *, uri: str | None = None, revision: str | None = None) -> None:
        self.path = Path(path)
        self.uri, self.revision = uri or str(self.path), revision
        try:
            with os.scandir(self.path) as entries:
                found = {entry.name: kind for entry in entries if (kind := _is_folder(entry)) is not None}
        except OSError as error:
            raise os_error(error, str(self.path)) from error
        self._names = frozenset(name for name, is_dir in found.items() if not is_dir)
        self._subfolders = frozenset(found) - self._names

    def names(self) -> frozenset[str]:
        """See `Folder`."""
        return self._names

    def subfolders(self) -> frozenset[str]:
        """See `Folder`."""
        return self._subfolders

    def inner(self, name: str) -> LocalFolder:
        """See `Folder`."""
        return LocalFolder(self.path / name, uri=f"{self.uri.rstrip('/')}/{name}", revision=self.revision)

    @property
    def name(self) -> str:
        """See `Folder`."""
        return self.path.absolute().name

    def beside(self) -> frozenset[str]:
        """See `Folder`."""
        try:
            with os.scandir(self.path.absolute().parent) as entries:
                return frozenset(entry.name for entry in entries if entry.is_dir())
        except OSError:
            return frozenset()

    def source(self, name: str) -> ByteSource:
        """See `Folder`."""
        return LocalFile(self.path / name)

    def stamps(self) -> dict[str, tuple[int, float | None]]:
        """See `Folder`."""
        found: dict[str, tuple[int, float | None]] = {}
        for name in self._names:
            try:
                status = (self.path / name).stat()
            except FileNotFoundError:
                continue  # it went since the folder was listed, or is a link to what went
            except OSError as error:
                raise os_error(error, str(self.path / name)) from error
            found[name] = status.st_size, status.st_mtime
        return found


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

    def names(self) -> frozenset[str]:
        """See `Folder`."""
        return frozenset({self._file})

    def subfolders(self) -> frozenset[str]:
        """See `Folder`."""
        return frozenset()

    def source(self, name: str) -> ByteSource:
        """See `Folder`."""
        return self._opener(name)
