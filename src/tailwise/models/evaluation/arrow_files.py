"""Arrow's own files, whose buffers may lie packed and claim any size: gone through before one is unfolded."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tailwise.core.storage import open_descriptor

_MAGIC = b"ARROW1\0\0"  # before the stream in a file of the other format
_BATCH, _DICTIONARY = "record batch", "dictionary"
#: Of tables of a FlatBuffer (format/Message.fbs of Apache Arrow): a message's header, a dictionary's data, a batch's
#: buffers and compression, each by its number.
_HEADER, _DATA, _BUFFERS, _COMPRESSION = 2, 1, 2, 3


def batches_of(path: Path, take: Callable[[int], None]) -> Iterator[Any]:
    """Record batches of a stream or file. `take` is given the bytes that packed buffers claim, before they unfold."""
    import os

    import pyarrow as pa

    os.close(open_descriptor(path))  # a regular file
    with pa.memory_map(str(path)) as mapped:
        data = mapped.read_buffer()
        stream = data.slice(len(_MAGIC)) if data.slice(0, len(_MAGIC)).to_pybytes() == _MAGIC else data
        for message in pa.ipc.MessageReader.open_stream(stream):
            if message.type in (_BATCH, _DICTIONARY):
                take(_claimed(message))
        with pa.ipc.open_stream(stream) as reader:
            yield from reader


def texts_in(array: Any, take: Callable[[int], None]) -> list[Any]:
    """The values of a column of text. `take` is given their bytes, before they are made.

    `ValueError` where the column is damaged, or holds something else.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    if pa.types.is_dictionary(array.type):
        check_text(array.dictionary.type)
        array.validate(full=True)
        array.dictionary.validate(full=True)
        lengths: Any = pc.take(pc.binary_length(array.dictionary), array.indices)
        take(int(pc.sum(lengths).as_py() or 0))
        decoded: list[Any] = array.dictionary_decode().to_pylist()
        return decoded
    check_text(array.type)
    array.validate(full=True)
    if pa.types.is_string_view(array.type):  # views may lie one over the other
        take(sum(len(value.as_buffer()) for value in array if value.is_valid))
    else:
        take(int(pc.sum(pc.binary_length(array)).as_py() or 0))
    plain: list[Any] = array.to_pylist()
    return plain


class NoTextError(ValueError):
    """A column of something else."""


def check_text(kind: Any) -> None:
    """`NoTextError` where a type of Arrow is none of text."""
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not (pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)):
        raise NoTextError(f"it holds {kind}")


def _claimed(message: Any) -> int:
    """Bytes that the packed buffers of a message say they unfold to; 0 where they lie as they are."""
    data, body = message.metadata.to_pybytes(), message.body
    batch = _table(data, _root(data), _HEADER)
    if message.type == _DICTIONARY:
        batch = None if batch is None else _table(data, batch, _DATA)
    if batch is None or _field(data, batch, _COMPRESSION) is None:
        return 0
    at = _table(data, batch, _BUFFERS)
    if at is None:
        return 0
    (count,) = struct.unpack_from("<I", data, at)
    total = 0
    for number in range(count):
        offset, length = struct.unpack_from("<qq", data, at + 4 + 16 * number)
        if length >= 8:  # the size stands first; −1 is a buffer that lies as it is
            (size,) = struct.unpack("<q", body.slice(offset, 8).to_pybytes())
            total += max(size, 0)
    return total


def _root(data: bytes) -> int:
    return int(struct.unpack_from("<I", data, 0)[0])


def _field(data: bytes, table: int, number: int) -> int | None:
    """Where a field of a table stands; None where the table does not have it."""
    listed = table - struct.unpack_from("<i", data, table)[0]
    (length,) = struct.unpack_from("<H", data, listed)
    place = 4 + 2 * number
    (offset,) = struct.unpack_from("<H", data, listed + place) if place < length else (0,)
    return table + offset if offset else None


def _table(data: bytes, table: int, number: int) -> int | None:
    """What a field refers to."""
    at = _field(data, table, number)
    return None if at is None else at + int(struct.unpack_from("<I", data, at)[0])
