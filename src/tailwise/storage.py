"""Bytes at a path or at a URL that fsspec knows (`s3://`, `gs://`, `memory://`, …): read, written whole, listed."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from tailwise.errors import UnreachableError, UnreadableError, UsageError

_URL = re.compile(r"[a-zA-Z][a-zA-Z0-9+.-]+://")
#: Seconds that a web server may take to be reached, and between two pieces of an answer.
HTTP_SECONDS = 30.0
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
        fix = f'pip install "tailwise[{extra}]"' if extra else str(error)
        raise UsageError(f"{scheme}:// takes a driver that is not installed", where=url, fix=fix) from error
    except ValueError as error:
        raise UsageError(f"{scheme}:// is not a scheme that fsspec knows: {error}", where=url) from error
    # Drivers keep listings for the life of the process; a stale one would give a changed file its old identity.
    fs.invalidate_cache()
    return fs, path


def _limits(scheme: str) -> dict[str, Any]:
    """Of web servers: a time for each wait, where the driver's is five minutes for the whole of an answer."""
    if scheme not in ("http", "https"):
        return {}
    import aiohttp

    waits = aiohttp.ClientTimeout(total=None, sock_connect=HTTP_SECONDS, sock_read=HTTP_SECONDS)
    return {"client_kwargs": {"timeout": waits}}


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
