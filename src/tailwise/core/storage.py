"""Bytes at a path or at a URL that fsspec knows (`s3://`, `gs://`, `memory://`, …): read, written whole, listed."""

from __future__ import annotations

import json
import mmap
import os
import re
import stat
import tomllib
from pathlib import Path
from typing import Any, BinaryIO

from tailwise.core.errors import UnreachableError, UnreadableError, UsageError
from tailwise.core.optional import how_to_get

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
#: Seconds that a web server may take to be reached, and between two pieces of an answer.
HTTP_SECONDS = 30.0
#: What else than a file may stand at a path. To open a pipe is to wait for who writes to it; a device has no end.
_OTHERS = (
    (stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"), (stat.S_ISBLK, "a device"),
)  # fmt: skip
#: Larger files are none that is read whole: audits, plans, studies, lists, settings.
_MOST = 4 << 30
_PIECE = 1 << 20
#: A TOML key of 64 parts, where a word begins; strings and comments are passed over.
_QUOTED = r"""(?:"(?:[^"\\\n]|\\.)*"|'[^'\n]*')"""
_LONG_KEY = re.compile(rf"""((?<![\w'"-])(?:(?:[\w-]+|{_QUOTED})[ \t]*\.[ \t]*){{63}})|{_QUOTED}|#[^\n]*""")
_EXTRAS = {"s3": "s3", "s3a": "s3", "gs": "gcs", "gcs": "gcs", "http": "http", "https": "http"}


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether `where` is a URL rather than a local path. `Path("s3://a")` has lost a slash: keep URLs as text."""
    return isinstance(where, str) and _URL.match(where) is not None and not where.startswith("file://")


def filesystem(url: str) -> tuple[Any, str]:
    """The file system of `url` and the path within it."""
    from fsspec.core import url_to_fs

    scheme = url.partition("://")[0]
    try:
        fs, path = url_to_fs(url, **_limits(scheme))
    except ImportError as error:
        extra = _EXTRAS.get(scheme)
        fix = how_to_get(extra) if extra else str(error)
        raise UsageError(f"{scheme}:// takes a driver that is not installed", where=url, fix=fix) from error
    except ValueError as error:
        raise UsageError(f"{scheme}:// is not a scheme that fsspec knows: {error}", where=url) from error
    # Drivers keep listings for the life of the process; a stale one would give a changed file its old identity.
    fs.invalidate_cache()
    return fs, path


def _limits(scheme: str) -> dict[str, Any]:
    """Of web servers: a time for each wait, where the driver's is five minutes for a whole answer; and its bytes."""
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    from tailwise.core.web_answers import BoundedAnswer

    waits = aiohttp.ClientTimeout(total=None, sock_connect=HTTP_SECONDS, sock_read=HTTP_SECONDS)
    return {"client_kwargs": {"timeout": waits, "response_class": BoundedAnswer}}


def open_descriptor(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file, to read from. What else stands there is an `UnreadableError`, at once.

    Raises the `OSError` of the system where there is nothing, or it may not be read.
    """
    # Without O_NONBLOCK the opening of a pipe waits; of a regular file it changes nothing.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(path, flags)
    try:
        mode = os.fstat(descriptor).st_mode
        what = next((words for is_it, words in _OTHERS if is_it(mode)), None)
        if what is not None:
            raise UnreadableError(
                f"is {what}, and a file was expected", where=path, fix="give a file that can be read twice"
            )
        if stat.S_ISDIR(mode):
            raise UnreadableError("is a directory, and a file was expected", where=path, fix="give a file in it")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def open_regular(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file to read from. Errors as of `open_descriptor`."""
    return os.fdopen(open_descriptor(path), "rb")


def read_bytes(path: str | os.PathLike[str], most: int = _MOST) -> bytes:
    """Everything in a regular file of at most `most` bytes. Errors as of `open_descriptor`."""
    with open_regular(path) as file:
        if os.fstat(file.fileno()).st_size <= most:
            # In pieces: `read(most)` takes room for as much, and a file of /proc does not say how long it is.
            data = bytearray()
            while len(data) <= most and (piece := file.read(_PIECE)):
                data += piece
            if len(data) <= most:
                return bytes(data)
    raise UnreadableError(f"is larger than {most >> 20} MiB, too large for what it should be", where=path)


def read_text(path: str | os.PathLike[str], encoding: str = "utf-8", most: int = _MOST) -> str:
    """The same as text, with line ends as Python has them. What is no text is a `UnicodeDecodeError`."""
    return read_bytes(path, most).decode(encoding).replace("\r\n", "\n").replace("\r", "\n")


def json_of(text: str | bytes) -> Any:
    """The data of a JSON text. `ValueError` where it is none, and where it is nested deeper than can be read."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def toml_of(text: str) -> dict[str, Any]:
    """The same of TOML; `tomllib.TOMLDecodeError` is a `ValueError` too."""
    # Time goes with the square of the parts: half a minute for a key of 40 KB.
    if any(key[1] for key in _LONG_KEY.finditer(text)):
        raise ValueError("a key has 64 parts or more")
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def is_text(document: Any) -> bool:
    """Whether all strings of JSON data can be written as UTF-8: `"\\ud800"` is half a character, and cannot."""
    if isinstance(document, str) and document.isascii():
        return True
    try:
        json.dumps(document, ensure_ascii=False, default=str, skipkeys=True).encode()
    except UnicodeEncodeError:
        return False
    return True


def mended(document: Any) -> Any:
    """The same JSON data, with `?` for halves of characters, which nothing that is written from it could hold."""
    if is_text(document):
        return document
    return json.loads(json.dumps(document, ensure_ascii=False).encode(errors="replace"))


def remote_error(error: Exception, name: str) -> UnreadableError:
    """A driver's error as an `UnreadableError` that says what to do."""
    if isinstance(error, UnreadableError):
        return error
    text = f"{type(error).__name__}: {error.__cause__ or error}"[:300]
    # fsspec calls every HTTP error FileNotFoundError, and keeps the true one as its cause.
    status = getattr(error, "status", None) or getattr(error.__cause__, "status", None)
    if status == 404 or (status is None and isinstance(error, FileNotFoundError)):
        return UnreadableError("no such file or folder", where=name, fix="check the address")
    if isinstance(error, PermissionError) or status in (401, 403):
        return UnreadableError(
            f"access was denied ({text})", where=name, fix="check the credentials that this address needs"
        )
    if "credentials" in text.lower():
        return UnreadableError(
            f"no credentials were found ({text})", where=name, fix="set them up as its driver documents"
        )
    return UnreachableError(f"could not be reached ({text})", where=name, fix="check the address and the network")


def get(url: str) -> bytes:
    """Everything at `url`. Raises `UnreadableError`."""
    fs, path = filesystem(url)
    try:
        return bytes(fs.cat_file(path))
    except Exception as error:  # every driver has errors of its own
        raise remote_error(error, url) from error


def put(url: str, data: bytes, *, exclusive: bool = False) -> str:
    """Write `data` to `url`; with `exclusive`, what is there already is a `FileExistsError`.

    Object stores show an object whole or not at all, which is what a rename gives on a disk.
    """
    fs, path = filesystem(url)
    # Stores that know a conditional write refuse it themselves; on others two writers may pass this at once.
    if exclusive and exists(url):
        raise FileExistsError(url)
    try:
        if not _keeps_objects(fs):
            fs.makedirs(fs._parent(path), exist_ok=True)
        fs.pipe_file(path, data, **({"mode": "create"} if exclusive else {}))
    except FileExistsError:
        raise
    except Exception as error:  # every driver has errors of its own
        known = remote_error(error, url)
        raise type(known)(f"could not be written: {known.what}", where=url, fix=known.fix) from error
    return url


def exists(where: str | Path) -> bool:
    """Whether there is a file or folder. Raises `UnreadableError` where a store does not answer."""
    if not is_url(where):
        return Path(where).exists()
    fs, path = filesystem(str(where))
    try:
        return bool(fs.exists(path))
    except Exception as error:  # every driver has errors of its own
        raise remote_error(error, str(where)) from error


def names(where: str | Path) -> frozenset[str]:
    """Names of the files and folders in a folder; none where there is no such folder."""
    if not is_url(where):
        folder = Path(where)
        return frozenset(path.name for path in folder.iterdir()) if folder.is_dir() else frozenset()
    fs, path = filesystem(str(where))
    try:
        return frozenset(entry.rstrip("/").rpartition("/")[2] for entry in fs.ls(path, detail=False)) - {""}
    except FileNotFoundError:
        return frozenset()
    except Exception as error:  # every driver has errors of its own
        raise remote_error(error, str(where)) from error


def joined(folder: str | Path, *parts: str) -> str | Path:
    """`folder` and what is in it: a URL for a URL, a path for a path."""
    if is_url(folder):
        return "/".join([str(folder).rstrip("/"), *parts])
    return Path(folder).joinpath(*parts)


def _keeps_objects(fs: Any) -> bool:
    """Whether the store has keys and no folders."""
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return not {"s3", "gs", "gcs", "abfs", "az"}.isdisjoint(protocols)


try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

#: What Arrow, torch and LAPACK take beside the data: pools, stacks of threads, workspaces.
_BESIDE = 128 << 20


def free_memory() -> int | None:
    """Bytes of memory that can be had without taking them from others; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def is_limited() -> bool:
    """Whether there is a limit of addresses."""
    return resource is not None and resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def ensure_room(nbytes: int = 0) -> None:
    """`MemoryError` where a limit of addresses (`ulimit -v`, a batch system's) leaves no room for `nbytes` and more."""
    if not is_limited():
        return
    try:
        mmap.mmap(-1, _BESIDE + nbytes).close()
    except OSError as error:
        raise MemoryError(f"no room for {(_BESIDE + nbytes) >> 20} MiB") from error
