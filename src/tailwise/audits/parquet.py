"""Parquet that somebody else may have made: what it claims is looked through before Arrow's library is asked.

Arrow ends the process where a footer's statistics contradict its columns, and takes whatever room pages claim. So
footer and page headers are read here, within limits; what is refused raises `ValueError`.

Source: the Parquet format (parquet.thrift) and Thrift's compact protocol, github.com/apache/parquet-format.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_MAGIC = b"PAR1"
#: Values that a table may have whatever the size of its file, and for each of its bytes: tables of equal values are
#: small on disk, and there is no end to how small.
_VALUES, _VALUES_A_BYTE = 1 << 24, 16
_LONGEST_FOOTER = 1 << 23
#: Of groups within groups: Arrow's library goes down by calling itself.
_DEEPEST = 32

_I32, _I64, _TEXT, _LIST, _SET, _MAP, _STRUCT = 5, 6, 8, 9, 10, 11, 12
_INTEGERS = frozenset({4, _I32, _I64})
#: Lists of the format, by struct: field → (what its elements are, fields of these that hold lists). Arrow reads them so
#: whatever a file says that they are.
_KEY_VALUES: tuple[Any, dict[int, Any]] = (frozenset({_STRUCT}), {})
_NUMBERS: tuple[Any, dict[int, Any]] = (frozenset({_I32, _I64}), {})
_STATISTICS = {2: _NUMBERS, 3: _NUMBERS}
_CHUNK: dict[int, Any] = {
    2: _NUMBERS, 3: (frozenset({_TEXT}), {}), 8: _KEY_VALUES, 13: _KEY_VALUES,
    16: (None, _STATISTICS), 17: (None, {2: _NUMBERS}),
}  # fmt: skip
_GROUP: dict[int, Any] = {1: (frozenset({_STRUCT}), {3: (None, _CHUNK)}), 4: _KEY_VALUES}
_FOOTER: dict[int, Any] = {2: _KEY_VALUES, 4: (frozenset({_STRUCT}), _GROUP), 5: _KEY_VALUES, 7: _KEY_VALUES}
#: A data page, a dictionary and a data page of version 2: field → the field in it that says how values are written.
_PAGES = {5: 2, 7: 2, 8: 4}
_BYTE_ARRAY, _FIXED_BYTE_ARRAY = 6, 7
#: Each text goes on where the last one ended: their lengths have no bound by the size of the file.
_DELTA_BYTE_ARRAY = 7
_UNUSUAL = "a column that is written as no table of an audit is"


def from_parquet(data: bytes) -> pa.Table:
    """The table of a Parquet file, unless it would unfold to far more than a file of that size holds.

    Columns of texts are plain, however they were written. Raises `ValueError` for what cannot be read.
    """
    texts = _check_claims(data)
    try:
        return _read(data, texts)
    except (MemoryError, ValueError):
        raise
    except (pa.ArrowException, OSError, KeyError) as error:
        raise ValueError(str(error)) from error


def opened(file: BinaryIO, **options: Any) -> pq.ParquetFile:
    """A file of somebody's texts for Arrow's library, once its footer has been looked through; read it in pieces.

    `options` as of `pyarrow.parquet.ParquetFile`. Raises `ValueError` for a footer that is none.
    """
    file.seek(0, io.SEEK_END)
    size = file.tell()
    file.seek(max(0, size - 8))
    tail = file.read(8)
    (length,) = struct.unpack("<I", tail[:4]) if len(tail) == 8 else (0,)
    file.seek(max(0, size - 8 - min(length, _LONGEST_FOOTER)))
    footer = file.read()
    file.seek(0)
    _footer_of(file.read(4) + footer)
    file.seek(0)
    return pq.ParquetFile(file, **options)


def _read(data: bytes, texts: list[str]) -> pa.Table:
    # Without threads: the tables are small, and a process that ends while Arrow starts its pool is aborted.
    file = pq.ParquetFile(io.BytesIO(data), pre_buffer=False, read_dictionary=texts)
    # One group of rows after the other: it cannot join dictionaries in lists.
    groups = [file.read_row_group(number, use_threads=False) for number in range(file.num_row_groups)]
    return _plain(groups or [file.read(use_threads=False)], _most_of(len(data)))


def _most_of(nbytes: int) -> int:
    return _VALUES + _VALUES_A_BYTE * nbytes


def _plain(groups: list[pa.Table], most: int) -> pa.Table:
    """Dictionaries written out, unless a long text stands there too often."""
    columns = [column for table in groups for column in table.columns]
    if sum(_length(chunk) for column in columns for chunk in column.chunks) > 8 * most:
        raise ValueError("texts that stand there too often")
    schema = groups[0].schema
    fields = [field.with_type(_plain_kind(field.type)) for field in schema]
    return pa.concat_tables([table.cast(pa.schema(fields, schema.metadata)) for table in groups])


def _plain_kind(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return kind.value_type
    return pa.list_(_plain_kind(kind.value_type)) if pa.types.is_list(kind) else kind


def _length(values: pa.Array) -> int:
    """Bytes of the texts of an array with a dictionary; 0 of another."""
    if pa.types.is_list(values.type):
        return _length(values.values)
    if not pa.types.is_dictionary(values.type):
        return 0
    return pc.sum(pc.binary_length(values.dictionary).cast(pa.int64()).take(values.indices)).as_py() or 0


def _check_claims(data: bytes) -> list[str]:
    """Look through footer and page headers; the columns that hold texts, by path."""
    footer = _footer_of(data)
    if 8 in footer:
        raise ValueError("an encrypted table")
    leaves = _leaves(_structs(footer, 2))
    if _FIXED_BYTE_ARRAY in leaves.values():
        raise ValueError(_UNUSUAL)
    claims = _Claims(len(data), _number(footer, 3) * max(len(leaves), 1))
    for group in _structs(footer, 4):
        for chunk in _structs(group, 1):
            metadata = chunk.get(3)
            if not isinstance(metadata, dict) or chunk.keys() & {8, 9}:
                raise ValueError("a column that is not described, or encrypted")
            claims.add("columns", _number(metadata, 5), _number(metadata, 6))
            for values, size in _pages(data, metadata):
                claims.add("pages", values, size)
    return [path for path, kind in leaves.items() if kind == _BYTE_ARRAY]


class _Claims:
    """What a footer and what the pages claim, each within its bounds."""

    def __init__(self, nbytes: int, cells: int) -> None:
        self.nbytes, self.most = nbytes, _most_of(nbytes)
        self.found = {"cells": (0, 0), "columns": (0, 0), "pages": (0, 0)}
        self.add("cells", cells, 0)

    def add(self, who: str, values: int, size: int) -> None:
        """More values, of `size` bytes."""
        values, size = values + self.found[who][0], size + self.found[who][1]
        if values > self.most or size > 8 * self.most:
            raise ValueError(f"a table of {self.nbytes} bytes claims {values} values in {size} bytes")
        self.found[who] = values, size


def _footer_of(data: bytes) -> Mapping[int, Any]:
    if len(data) < 12 or data[:4] != _MAGIC or data[-4:] != _MAGIC:
        raise ValueError("no Parquet file")
    (length,) = struct.unpack("<I", data[-8:-4])
    if length > min(len(data) - 12, _LONGEST_FOOTER):
        raise ValueError(f"a footer of {length} bytes")
    return _Reader(data, len(data) - 8 - length, len(data) - 8).struct(_FOOTER)


def _leaves(elements: list[Mapping[int, Any]]) -> dict[str, int]:
    """Columns by path, with how their values are kept."""
    leaves: dict[str, int] = {}
    path: list[str] = []
    left: list[int] = []  # children that are still to come, of each group that is open
    for element in elements:
        while left and not left[-1]:
            left.pop()
            path.pop()
        if left:
            left[-1] -= 1
        name, children = element.get(4), _number(element, 5, 0)
        if not isinstance(name, bytes) or len(left) > _DEEPEST:
            raise ValueError("a column without a name, or within columns without end")
        path.append(name.decode())
        left.append(children)
        if not children and len(path) > 1:
            leaves[".".join(path[1:])] = _number(element, 1, -1)
    return leaves


def _pages(data: bytes, metadata: Mapping[int, Any]) -> Iterator[tuple[int, int]]:
    """Values and unfolded bytes that the pages of a column claim."""
    first, dictionary = _number(metadata, 9), _number(metadata, 11, 0)
    place = dictionary if 0 < dictionary < first else first
    total, seen = _number(metadata, 5), 0
    ends = place + _number(metadata, 7)
    if not 0 <= place <= ends <= len(data):
        raise ValueError("a column that lies outside of the file")
    while seen < total and place < ends:
        reader = _Reader(data, place, ends)
        head = reader.struct({})
        for field, encoding in _PAGES.items():
            page = head.get(field)
            if isinstance(page, dict):
                if _number(page, encoding) == _DELTA_BYTE_ARRAY:
                    raise ValueError(_UNUSUAL)
                values = _number(page, 1)
                seen += values if field != 7 else 0
                yield values, 0
        yield 0, _number(head, 2)
        place = reader.place + _number(head, 3)


def _structs(holder: Mapping[int, Any], field: int) -> list[Mapping[int, Any]]:
    structs = holder.get(field)
    if not isinstance(structs, list) or not all(isinstance(item, dict) for item in structs):
        raise ValueError("a footer that is none")
    return structs


def _number(holder: Mapping[int, Any], field: int, default: int | None = None) -> int:
    """A number that is not negative."""
    number = holder.get(field, default)
    if not isinstance(number, int) or isinstance(number, bool) or number < min(default or 0, 0):
        raise ValueError("a footer or a page without its numbers")
    return number


class _Reader:
    """Thrift's compact protocol between two places of `data`: a struct is a dict by number of field.

    What readers could understand differently is refused: a field that stands there twice, numbers beyond their range,
    lists of other things than the format says.
    """

    def __init__(self, data: bytes, place: int, ends: int) -> None:
        self.data, self.place, self.ends = data, place, ends

    def struct(self, lists: Mapping[int, Any], depth: int = 0) -> dict[int, Any]:
        """A struct; `lists` says what is in it, by field."""
        if depth > _DEEPEST:
            raise ValueError("structs within structs without end")
        values: dict[int, Any] = {}
        field = 0
        while head := self._byte():
            kind, step = head & 15, head >> 4
            field = field + step if step else self._signed()
            if not 0 <= field < 1 << 15 or field in values:
                raise ValueError("a struct that is none")
            values[field] = kind == 1 if kind in (1, 2) else self._value(kind, lists.get(field), depth)
        return values

    def _value(self, kind: int, expected: Any, depth: int) -> Any:
        if kind in _INTEGERS:
            number = self._signed()
            if not -(1 << 63) <= number < 1 << 63 or (kind != _I64 and not -(1 << 31) <= number < 1 << 31):
                raise ValueError("a number beyond its range")
            return number
        if kind == _STRUCT:
            return self.struct(expected[1] if expected else {}, depth + 1)
        if kind in (_LIST, _SET):
            return self._list(expected, depth)
        if kind == _MAP:
            raise ValueError("a map, of which the format has none")
        if kind in (1, 2, 3):
            return self._byte()
        if kind == 7:
            return self._bytes(8)
        if kind == _TEXT:
            return self._bytes(self._unsigned())
        raise ValueError(f"a field of the kind {kind}")

    def _list(self, expected: Any, depth: int) -> list[Any]:
        head = self._byte()
        kind, count = head & 15, head >> 4
        count = self._unsigned() if count == 15 else count
        if count > self.ends - self.place or (expected and expected[0] is not None and kind not in expected[0]):
            raise ValueError("a list that is none")
        if depth > _DEEPEST:
            raise ValueError("lists within lists without end")
        inner = (None, expected[1]) if expected else None
        return [self._value(kind, inner, depth + 1) for _ in range(count)]

    def _byte(self) -> int:
        if self.place >= self.ends:
            raise ValueError("it ends too early")
        self.place += 1
        return self.data[self.place - 1]

    def _bytes(self, count: int) -> bytes:
        if count > self.ends - self.place:
            raise ValueError("it ends too early")
        self.place += count
        return self.data[self.place - count : self.place]

    def _unsigned(self) -> int:
        number = 0
        for shift in range(0, 70, 7):
            byte = self._byte()
            number |= (byte & 127) << shift
            if byte < 128:
                return number
        raise ValueError("a number without end")

    def _signed(self) -> int:
        number = self._unsigned()
        return number >> 1 ^ -(number & 1)
