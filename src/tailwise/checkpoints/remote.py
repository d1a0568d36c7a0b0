"""Files behind fsspec (`s3://`, `gs://`, `https://`, `memory://`, …), read by byte ranges."""

from __future__ import annotations

import logging
import random
import tempfile
import threading
import time
import weakref
from pathlib import Path
from typing import Any

from typing_extensions import override

from tailwise.checkpoints.bytesource import ByteSource, Folder, os_error
from tailwise.core.errors import UnreachableError, UnreadableError
from tailwise.core.storage import remote_error

_log = logging.getLogger(__name__)
_SPOOL_STEP = 1 << 24
#: Seconds before a range is asked for again where the store could not be reached.
_PAUSES = (0.2, 1.0, 3.0)
_SPOOLING = threading.Lock()
#: Keys under which file systems give what changes with a file's content, strongest first.
_STAMPS = ("ETag", "etag", "md5Hash", "generation", "Content-MD5", "VersionId", "created", "mtime")


class RemoteFile(ByteSource):
    """One file of an fsspec file system."""

    def __init__(self, fs: Any, path: str, *, name: str, info: dict[str, Any] | None = None) -> None:
        self._fs, self._path, self.name = fs, path, name
        self._info = info or remote_info(fs, path, name)
        size = self._info.get("size")
        if size is None:
            raise UnreadableError(
                "the server does not say how large the file is",
                where=name,
                fix="download it and open the copy",
            )
        self.size = int(size)
        self._closed = self._gone = False
        self._copy: Path | None = None
        if "http" in _protocols(fs):
            _check_ranges(fs, path, name)

    @override
    def read_into(self, buffer: memoryview, offset: int) -> None:
        if self._closed:
            raise UnreadableError("is closed", where=self.name, fix="open the checkpoint again")
        if not buffer:
            return
        data = self._range(offset, len(buffer))
        if len(data) != len(buffer):
            raise UnreadableError(
                f"{len(buffer)} bytes from {offset} were asked for and {len(data)} came",
                where=self.name,
                fix="the file changed, or its server ignores byte ranges: download it and open the copy",
            )
        buffer[:] = data

    def _range(self, offset: int, nbytes: int) -> bytes:
        # Once a store stayed away through all pauses, every further range would wait as long for nothing.
        for pause in (*(() if self._gone else _PAUSES), None):
            try:
                data: bytes = self._fs.cat_file(self._path, start=offset, end=offset + nbytes)
            except Exception as error:  # every driver has errors of its own
                failure = remote_error(error, self.name)
                if pause is None or not isinstance(failure, UnreachableError):
                    self._gone = isinstance(failure, UnreachableError)
                    raise failure from error
                _log.info("%s: %s; again in %.1f s", self.name, failure, pause)
                time.sleep(pause * (0.5 + random.random()))  # noqa: S311 - so that readers do not come back as one
            else:
                self._gone = False
                break
        return data

    def identity(self) -> str | None:
        """What the file system calls a version, or None."""
        stamp = next((f"{key}={self._info[key]}" for key in _STAMPS if self._info.get(key)), None)
        return None if stamp is None else f"{self.name}:{self.size}:{stamp}"

    def local_path(self) -> Path:
        """A temporary copy, deleted at `close`."""
        with _SPOOLING:
            if self._copy is None:
                _log.warning("downloading all %d bytes of %s: its format needs a local file", self.size, self.name)
                self._copy = self._spool()
        return self._copy

    def _spool(self) -> Path:
        try:
            with tempfile.NamedTemporaryFile(prefix="tailwise-", delete=False) as file:
                weakref.finalize(self, Path(file.name).unlink, missing_ok=True)
                for start in range(0, self.size, _SPOOL_STEP):
                    file.write(self.read(start, min(_SPOOL_STEP, self.size - start)))
        except OSError as error:
            raise os_error(error, tempfile.gettempdir()) from error
        return Path(file.name)

    def __getstate__(self) -> dict[str, Any]:
        # A temporary copy lies on this machine alone.
        return {**self.__dict__, "_copy": None}

    @override
    def close(self) -> None:
        self._closed = True
        copy, self._copy = self._copy, None
        if copy is not None:
            copy.unlink(missing_ok=True)


class RemoteFolder(Folder):
    """A folder of an fsspec file system."""

    def __init__(self, fs: Any, path: str, *, uri: str) -> None:
        self._fs, self._path, self.uri = fs, path.rstrip("/"), uri
        try:
            listing = fs.ls(self._path, detail=True)
        except Exception as error:  # every driver has errors of its own
            raise remote_error(error, uri) from error
        self._found = {entry["name"].rstrip("/").rpartition("/")[2]: entry for entry in listing}

    @override
    def names(self) -> frozenset[str]:
        return frozenset(name for name, entry in self._found.items() if entry["type"] != "directory")

    @override
    def subfolders(self) -> frozenset[str]:
        return frozenset(self._found) - self.names()

    @override
    def inner(self, name: str) -> RemoteFolder:
        return RemoteFolder(self._fs, f"{self._path}/{name}", uri=f"{self.uri.rstrip('/')}/{name}")

    @override
    def source(self, name: str) -> ByteSource:
        info = self._found.get(name)
        return RemoteFile(self._fs, f"{self._path}/{name}", name=f"{self.uri.rstrip('/')}/{name}", info=info)

    @override
    def stamps(self) -> dict[str, tuple[int, float | None]]:
        """Drivers name times in many ways, so none is given; object stores show whole files only."""
        return {name: (int(self._found[name].get("size") or 0), None) for name in self.names()}


def remote_info(fs: Any, path: str, name: str) -> dict[str, Any]:
    """What the file system knows about a file or folder."""
    try:
        return dict(fs.info(path))
    except Exception as error:  # every driver has errors of its own
        raise remote_error(error, name) from error


def _protocols(fs: Any) -> tuple[str, ...]:
    return (fs.protocol,) if isinstance(fs.protocol, str) else tuple(fs.protocol)


def _check_ranges(fs: Any, path: str, name: str) -> None:
    """Fail if the server answers a range with the whole file; nothing of its answer is read."""
    from fsspec.asyn import sync

    async def status() -> int:
        session = await fs.set_session()
        kwargs = dict(fs.kwargs)
        headers = {**kwargs.pop("headers", {}), "Range": "bytes=0-0"}
        async with session.get(fs.encode_url(path), headers=headers, **kwargs) as answer:
            return int(answer.status)

    try:
        code = sync(fs.loop, status)
    except Exception as error:  # aiohttp raises many kinds
        raise remote_error(error, name) from error
    if code == 200:
        raise UnreadableError(
            "its server does not serve byte ranges, so every read would fetch the whole file",
            where=name,
            fix="download it and open the copy",
        )
