"""Members of zip archives that would unfold into far more than they take, or share their bytes: refused before."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

from tailwise.core.errors import UnreadableError

#: Bytes that any member may unfold to. Beyond, it may by this factor, which weights full of zeros do not reach.
MOST_BYTES = 1 << 28
FACTOR = 64


def check_unfolding(members: Iterable[zipfile.ZipInfo], where: str) -> None:
    """`UnreadableError` where one of `members` unfolds to more than weights do, or two share their bytes."""
    end = packed = whole = 0
    for member in sorted(members, key=lambda one: one.header_offset):
        if member.header_offset < end:
            raise UnreadableError(
                f"{member.filename[:100]} lies over another part of the archive", where=where,
                fix="it is damaged or made to harm: download or save it again",
            )  # fmt: skip
        end = member.header_offset + member.compress_size
        if member.file_size > max(MOST_BYTES, FACTOR * member.compress_size):
            raise UnreadableError(
                f"{member.filename[:100]} would unfold from {member.compress_size} to {member.file_size} bytes",
                where=where,
                fix="if you trust the file, save it again without compression",
            )
        packed, whole = packed + member.compress_size, whole + member.file_size
    if whole > max(MOST_BYTES, FACTOR * packed):
        raise UnreadableError(
            f"its parts would unfold from {packed} to {whole} bytes together",
            where=where,
            fix="if you trust the file, save it again without compression",
        )
