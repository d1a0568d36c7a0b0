"""Zip archives that somebody else may have made: what reading a damaged one raises, and whether a file is one."""

from __future__ import annotations

import lzma
import os
import struct
import zipfile
import zlib

#: What damaged bytes of an archive make `zipfile`, the decompressors below it, and who reads a member raise.
DAMAGED_ARCHIVE = (
    OSError, EOFError, ValueError, TypeError, LookupError, OverflowError, RuntimeError, struct.error,
    zipfile.BadZipFile, zlib.error, lzma.LZMAError,
)  # fmt: skip


def is_archive(path: str | os.PathLike[str]) -> bool:
    """Whether a file ends as a zip archive does; what lies in it may still be damaged."""
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # one that claims to span several disks
        return False


def archive_names(path: str | os.PathLike[str]) -> frozenset[str]:
    """Names of the parts of an archive; none where the file is no archive, or its directory is damaged."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(archive.namelist())
    except DAMAGED_ARCHIVE:
        return frozenset()
