"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import overload

from tailwise.core import storage
from tailwise.core.errors import UnreadableError


@overload
def write_whole(path: Path, data: bytes, *, exclusive: bool = False) -> Path: ...
@overload
def write_whole(path: str | Path, data: bytes, *, exclusive: bool = False) -> Path | str: ...
def write_whole(path: str | Path, data: bytes, *, exclusive: bool = False) -> Path | str:
    """Write `data` aside and put it in place of `path`, a file or a URL; folders on the way are made.

    With `exclusive`, a file that is there already is a `FileExistsError`. Anything else that keeps it from being
    written is an `UnreadableError`, and leaves what was there before.
    """
    if storage.is_url(path):
        return storage.put(str(path), data, exclusive=exclusive)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _put(target, data, exclusive)
    except FileExistsError:
        raise
    except OSError as error:
        raise could_not_write(error, target) from error
    return target


def could_not_write(error: OSError, where: Path) -> UnreadableError:
    """The error for a full disk, a folder without permission, and their like."""
    fix = "free space there, or choose another place; computed spectra are kept, so a second run is quick"
    return UnreadableError(f"could not write: {error.strerror or error}", where=where, fix=fix)


def _put(target: Path, data: bytes, exclusive: bool) -> None:
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        # Not tempfile: its files are closed to others, and these get the user's ordinary permissions.
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        if exclusive:
            target.hardlink_to(temporary)  # unlike a rename, this never replaces
        else:
            temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)
