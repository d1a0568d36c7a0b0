"""Rows of text from the files that data sets come in, of which no more is unfolded than files of text hold."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from tailwise.checkpoints.formats.unfolding import FACTOR, MOST_BYTES
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.storage import json_of, open_regular
from tailwise.models.evaluation.arrow_files import batches_of, check_text, texts_in

#: What files are, by how their names end; what they are packed with stands behind it.
KINDS: Mapping[str, str] = {
    ".jsonl": "json", ".ndjson": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".tsv": "csv",
    ".arrow": "arrow", ".txt": "text",
}  # fmt: skip
PACKED = (".gz", ".bz2", ".xz", ".zst")
_ROWS = 256  # of a table at a time
_LONGEST_FIELD = (1 << 31) - 1


class NoColumnError(ValueError):
    """A table has columns, `args[0]`, and not the one that was asked for."""


@dataclass
class Room:
    """Bytes that the text of some files may have: those that lie there, and what text that repeats is packed to."""

    stored: int
    where: str
    taken: int = 0

    @property
    def most(self) -> int:
        """All bytes that may be taken."""
        return max(MOST_BYTES, FACTOR * self.stored)

    def take(self, nbytes: int) -> None:
        """`UnreadableError` where so many more are too many."""
        self.taken += nbytes
        if self.taken > self.most:
            raise UnreadableError(
                f"its text would unfold from {self.stored} to more than {self.most} bytes",
                where=self.where,
                fix="if you trust it, write it unpacked as .jsonl",
            )


def kind_of(path: Path) -> str | None:
    """Of what kind a file is by its name; None of others."""
    suffixes = [suffix for suffix in path.suffixes if suffix not in PACKED]
    return KINDS.get(suffixes[-1]) if suffixes else None


def rows_of(path: Path, column: str, room: Room, separator: str = ",") -> Iterator[Any]:
    """The values of a column, one after the other; None where a row has none.

    `separator` is of fields in a file of them. Raises `NoColumnError`, the errors of files, and what readers of damaged
    bytes raise.
    """
    kind = kind_of(path)
    if kind == "parquet":
        yield from _of_parquet(path, column, room)
    elif kind == "arrow":
        yield from _of_arrow(path, column, room)
    else:
        with open_regular(path) as file, closing(_unpacked(file, room)) as stream:
            if kind == "csv":
                yield from _of_fields(stream, column, "\t" if ".tsv" in path.suffixes else separator)
            elif kind == "text":
                yield from _of_lines(stream, column)
            else:
                yield from _of_json(stream, column)


class _CountedRead(io.RawIOBase):
    """What a packed file unfolds to, counted as it is read."""

    def __init__(self, inner: Any, room: Room) -> None:
        self._inner, self._room = inner, room

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int:
        data = self._inner.read(len(buffer))
        self._room.take(len(data))
        buffer[: len(data)] = data
        return len(data)

    @override
    def close(self) -> None:
        self._inner.close()
        super().close()


def _unpacked(file: BinaryIO, room: Room) -> BinaryIO:
    """The bytes of a file, and of one that is packed what is in it, by what it begins with."""
    head = file.read(6)
    file.seek(0)
    unpack = next((unpack for start, unpack in _PACKINGS if head.startswith(start)), None)
    return file if unpack is None else io.BufferedReader(_CountedRead(unpack(file), room), 1 << 20)


def _zstandard(file: BinaryIO) -> Any:
    try:
        import zstandard
    except ImportError as error:
        raise UsageError(
            "a file packed with zstd takes `zstandard`", fix="pip install zstandard, or unpack it"
        ) from error
    return zstandard.ZstdDecompressor(max_window_size=1 << 27).stream_reader(file)


_PACKINGS: tuple[tuple[bytes, Callable[[BinaryIO], Any]], ...] = (
    (b"\x1f\x8b", lambda file: gzip.GzipFile(fileobj=file)),
    (b"BZh", bz2.BZ2File),
    (b"\xfd7zXZ\x00", lzma.LZMAFile),
    (b"\x28\xb5\x2f\xfd", _zstandard),
)


def _of_json(stream: BinaryIO, column: str) -> Iterator[Any]:
    """Of a JSON object in each line, or of one document: a list of objects or of texts, or an object of lists."""
    first = next((line for line in stream if line.strip()), b"")
    try:
        row = json_of(first)
    except ValueError:
        row = None
    if not isinstance(row, dict) or (rest := next((line for line in stream if line.strip()), None)) is None:
        yield from _of_document(row if isinstance(row, dict) else json_of(first + stream.read()), column)
        return
    yield from _of_objects(chain([row], (json_of(line) for line in chain([rest], stream) if line.strip())), column)


def _of_document(document: Any, column: str) -> Iterator[Any]:
    lists = isinstance(document, dict) and document and all(isinstance(value, list) for value in document.values())
    if lists:
        if column not in document:
            raise NoColumnError(list(document))
        yield from document[column]
        return
    rows = document if isinstance(document, list) else [document]
    if rows and column == "text" and all(isinstance(row, str) for row in rows):
        yield from rows
        return
    yield from _of_objects(rows, column)


def _of_objects(rows: Iterable[Any], column: str) -> Iterator[Any]:
    found, names = False, list[str]()
    for row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"a row is a JSON {type(row).__name__}, and an object was expected")
        names = names or [str(name) for name in row]
        found = found or column in row
        yield row.get(column)
    if names and not found:
        raise NoColumnError(names)


def _of_fields(stream: BinaryIO, column: str, separator: str) -> Iterator[Any]:
    csv.field_size_limit(_LONGEST_FIELD)  # which is 128 KB, less than documents have
    with io.TextIOWrapper(stream, "utf-8-sig", newline="") as text:
        rows = csv.reader(text, delimiter=separator)
        names = next(rows, [])
        if column not in names:
            raise NoColumnError(names)
        place = names.index(column)
        for row in rows:
            if row:
                yield row[place] if place < len(row) else None


def _of_lines(stream: BinaryIO, column: str) -> Iterator[Any]:
    if column != "text":
        raise NoColumnError(["text"])
    with io.TextIOWrapper(stream, "utf-8-sig") as text:
        for line in text:
            yield line.rstrip("\n")


def _of_parquet(path: Path, column: str, room: Room) -> Iterator[Any]:
    from tailwise.audits.parquet import opened

    with open_regular(path) as file:
        plain = opened(file)
        names = plain.schema_arrow.names
        if column not in names:
            raise NoColumnError(names)
        check_text(plain.schema_arrow.field(column).type)
        _check_pages(plain.metadata, column, room)
        # A value that stands once and is meant often stays one until it is known how long all of them are.
        table = opened(file, read_dictionary=[column], metadata=plain.metadata)
        for batch in table.iter_batches(batch_size=_ROWS, columns=[column], use_threads=False):
            yield from texts_in(batch.column(0), room.take)


def _check_pages(metadata: Any, column: str, room: Room) -> None:
    """`UnreadableError` where the pages of a column say that they unfold to more than there is room for."""
    pages = Room(room.stored, room.where)
    for group in range(metadata.num_row_groups):
        listed = metadata.row_group(group)
        for place in range(listed.num_columns):
            if listed.column(place).path_in_schema == column:
                pages.take(max(0, listed.column(place).total_uncompressed_size))


def _of_arrow(path: Path, column: str, room: Room) -> Iterator[Any]:
    for batch in batches_of(path, room.take):
        if column not in batch.schema.names:
            raise NoColumnError(batch.schema.names)
        for start in range(0, batch.num_rows, _ROWS):
            yield from texts_in(batch.column(column).slice(start, _ROWS), room.take)
