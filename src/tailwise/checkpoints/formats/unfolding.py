"""Members of zip archives that would unfold into far more than they take: refused before they do."""

from __future__ import annotations

import zipfile
from collections.abc import Iterable

from tailwise.core.errors import UnreadableError

#: Bytes that any member may unfold to. Beyond, it may by this factor, which weights full of zeros do not reach.
MOST_BYTES = 1 << 28
FACTOR = 64


def check_unfolding(members: Iterable[zipfile.ZipInfo], where: str) -> None:
    """`UnreadableError` where one of `members` unfolds to more than weights do."""
    packed = whole = 0
    for member in members:
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
