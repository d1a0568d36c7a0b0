"""The header of a GGUF file, parsed from byte ranges as if its writer meant harm.

A magic, a version, counts, key-value metadata, tensor infos, padding, data.
https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any, NoReturn

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.core.errors import UnreadableError

_CHUNK = 1 << 20
#: What any model's header stays far below: the largest vocabularies take 30 MB and two million entries of lists. Read,
#: a byte becomes twenty and more, here and in the libraries that read the file next.
_MOST_BYTES, _MOST_ENTRIES, _MOST_TENSORS = 1 << 27, 1 << 23, 1 << 20
_MAX_NUMEL = 1 << 62
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MADE = "it is damaged or made to harm: download it again"


@dataclass(frozen=True)
class TensorInfo:
    """A tensor as the header lists it."""

    name: str
    shape: tuple[int, ...]  # row-major: GGUF's dimensions in reverse
    type_id: int
    offset: int  # from the start of the file


@dataclass(frozen=True)
class GgufHeader:
    """What a GGUF file says about itself."""

    metadata: dict[str, Any]
    tensors: list[TensorInfo]


def read_gguf_header(source: ByteSource) -> GgufHeader:
    """Metadata and tensor infos of `source`."""
    reader = _HeaderReader(source)
    if reader.take(4) != b"GGUF":
        reader.fail("does not start with GGUF")
    version = reader.number("I")
    if version not in (2, 3):
        reader.fail(f"has version {version}, and tailwise reads 2 and 3 (little-endian)")
    n_tensors, n_pairs = reader.number("Q"), reader.number("Q")
    # Each pair takes 13 bytes or more and each info 24, so a lying count ends before it costs anything.
    if n_tensors * 24 + n_pairs * 13 > source.size:
        reader.fail(f"claims {n_tensors} tensors and {n_pairs} settings, more than fit in it")
    if n_tensors > _MOST_TENSORS:
        reader.fail(f"claims {n_tensors} tensors, more than any model has", fix=_MADE)
    metadata: dict[str, Any] = {}
    for _ in range(n_pairs):
        key = reader.text()
        metadata[key] = reader.value(reader.number("I"))
    infos = [reader.info() for _ in range(n_tensors)]
    if len({info[0] for info in infos}) != len(infos):
        reader.fail("lists a tensor twice")
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or not 0 < alignment <= 1 << 20:
        reader.fail(f"has the alignment {alignment!r}")
    base = -(-reader.position // alignment) * alignment
    return GgufHeader(metadata, [TensorInfo(n, shape, kind, base + off) for n, shape, kind, off in infos])


class _HeaderReader:
    """A cursor over a source, which it reads in chunks."""

    def __init__(self, source: ByteSource) -> None:
        self._source, self.position = source, 0
        self._chunk, self._chunk_start = b"", 0
        self._entries = 0  # of all lists so far

    def take(self, count: int) -> bytes:
        """The next `count` bytes."""
        end = self.position + count
        if end > self._source.size:
            self.fail("ends within its header", fix="it is cut off: download it again")
        if end > _MOST_BYTES:
            self.fail(f"has a header of more than {_MOST_BYTES >> 20} MB, and no model has", fix=_MADE)
        if end > self._chunk_start + len(self._chunk):
            self._chunk_start = self.position
            size = min(max(count, _CHUNK), self._source.size - self.position)
            self._chunk = self._source.read(self.position, size)
        start = self.position - self._chunk_start
        self.position = end
        return self._chunk[start : start + count]

    def number(self, code: str) -> Any:
        """One little-endian number of struct code `code`."""
        return struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))[0]

    def text(self) -> str:
        """A string with its length in front."""
        raw = self.take(self.number("Q"))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            # Tokens may be pieces of characters; names of tensors that are not text fail later by name.
            return raw.decode("utf-8", errors="replace")

    def value(self, kind: int, depth: int = 0) -> Any:
        """A metadata value; arrays as lists."""
        if kind in _SCALARS:
            return self.number(_SCALARS[kind])
        if kind == _STRING:
            return self.text()
        if kind != _ARRAY or depth > 4:
            self.fail(f"has metadata of the unknown type {kind}")
        inner, count = self.number("I"), self.number("Q")
        if count > self._source.size:
            self.fail(f"claims a list of {count} entries, more than fit in it")
        self._entries += count
        if self._entries > _MOST_ENTRIES:
            self.fail(f"has lists of more than {_MOST_ENTRIES} entries, and no model has", fix=_MADE)
        if inner in _SCALARS:
            code = _SCALARS[inner]
            return list(struct.unpack(f"<{count}{code}", self.take(count * struct.calcsize(f"<{code}"))))
        if count * 8 > self._source.size:
            self.fail(f"claims a list of {count} entries, more than fit in it")
        return [self.value(inner, depth + 1) for _ in range(count)]

    def info(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, row-major shape, type and offset within the data of one tensor."""
        name, n_dims = self.text(), self.number("I")
        if n_dims > 8:
            self.fail(f"gives the tensor {name[:100]!r} {n_dims} axes")
        shape = tuple(self.number("Q") for _ in range(n_dims))[::-1]
        numel = 1
        for size in shape:
            numel *= max(size, 1)
            if numel > _MAX_NUMEL:
                self.fail(f"gives the tensor {name[:100]!r} a shape that overflows: {shape}")
        return name, shape, self.number("I"), self.number("Q")

    def fail(self, what: str, *, fix: str = "it is damaged: download it again") -> NoReturn:
        """Raise for what is wrong here."""
        raise UnreadableError(f"the GGUF file {what}", where=self._source.name, fix=fix)
