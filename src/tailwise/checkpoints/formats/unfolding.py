"""Members of zip archives that would unfold into far more than they take, or share their bytes: refused before."""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterable
from typing import IO

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


#: The last record of an archive, what leads from it to one with larger numbers, and that one.
_END, _LEADS, _LARGE = struct.Struct("<4s4H2LH"), struct.Struct("<4sLQL"), struct.Struct("<4sQ2H2L4Q")
_LONGEST_COMMENT = 0xFFFF
_FULL = 0xFFFFFFFF  # in the place of a number that only the record for larger ones has


def check_one_directory(file: IO[bytes], where: str) -> None:
    """`UnreadableError` where readers of zip archives can find another list of members than each other.

    Some go by where the list is said to begin, some by where it ends. Where it begins where it is said to and ends at
    the record that says so, all find the same one. What is no archive is left to whoever opens it.
    """
    size = file.seek(0, 2)
    start = max(0, size - _END.size - _LONGEST_COMMENT)
    file.seek(start)
    tail = file.read(size - start)
    place = tail.rfind(b"PK\x05\x06")
    if place < 0 or len(tail) < place + _END.size:
        return
    *_, length, begin, _ = _END.unpack_from(tail, place)
    end = start + place
    file.seek(max(0, end - _LEADS.size - _LARGE.size))
    before = file.read(min(end, _LEADS.size + _LARGE.size))
    if before[-_LEADS.size :].startswith(b"PK\x06\x07"):
        leads = _LEADS.unpack(before[-_LEADS.size :])[2]
        end -= _LEADS.size + _LARGE.size
        large = before[: _LARGE.size]
        if leads != end or len(before) < _LEADS.size + _LARGE.size or not large.startswith(b"PK\x06\x06"):
            _two_ways(where)
        *_, longer, later = _LARGE.unpack(large)
        if length not in (longer, _FULL) or begin not in (later, _FULL):
            _two_ways(where)
        length, begin = longer, later
    if begin + length != end:
        _two_ways(where)


def _two_ways(where: str) -> None:
    raise UnreadableError(
        "its list of parts can be read in two ways", where=where,
        fix="it is damaged or made to harm: download or save it again",
    )  # fmt: skip
