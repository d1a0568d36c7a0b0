"""Byte ranges of a file that are read together and held."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tailwise.checkpoints.bytesource import ByteSource

#: Bytes between two ranges that are read along rather than asked for apart: from afar a request costs about as much.
GAP = 1 << 20
#: A longer range comes in parts side by side from afar, where one connection does not fill the line.
PART = 16 << 20
_AT_ONCE = 4

Span = tuple[int, int]  # offset, bytes


def coalesced(spans: Iterable[Span], gap: int = GAP) -> list[Span]:
    """The spans in order, those that overlap or lie at most `gap` bytes apart as one."""
    joined: list[Span] = []
    for start, nbytes in sorted(spans):
        if joined and start <= sum(joined[-1]) + gap:
            first = joined[-1][0]
            joined[-1] = first, max(sum(joined[-1]), start + nbytes) - first
        else:
            joined.append((start, nbytes))
    return joined


class HeldFile(ByteSource):
    """A file of which some ranges are in memory; the rest is read when it is asked for."""

    def __init__(self, file: ByteSource, spans: Iterable[Span]) -> None:
        self._file = file
        self.name, self.size, self.local = file.name, file.size, file.local
        self._held = [(start, _read(file, start, nbytes)) for start, nbytes in coalesced(spans)]

    def read_into(self, buffer: memoryview, offset: int) -> None:
        """See `ByteSource`."""
        for start, data in self._held:
            if start <= offset and offset + len(buffer) <= start + len(data):
                buffer[:] = memoryview(data)[offset - start : offset - start + len(buffer)]
                return
        self._file.read_into(buffer, offset)

    def identity(self) -> str | None:
        """See `ByteSource`."""
        return self._file.identity()

    def local_path(self) -> Path:
        """See `ByteSource`."""
        return self._file.local_path()

    def close(self) -> None:
        """See `ByteSource`."""
        self._held = []
        self._file.close()


def _read(file: ByteSource, start: int, nbytes: int) -> bytearray:
    data = bytearray(nbytes)
    view = memoryview(data)
    if file.local or nbytes <= PART:
        file.read_into(view, start)
        return data
    with ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="tailwise-read") as pool:
        parts = [pool.submit(file.read_into, view[at : at + PART], start + at) for at in range(0, nbytes, PART)]
        for part in parts:
            part.result()
    return data
