"""Tensors of a remote checkpoint on their way while others are solved: many ranges at once, as far as memory allows.

A request to a store takes tens of milliseconds before its first byte, however small the range. Asked for one after the
other by as many threads as there are cores, they leave line and cores idle in turn.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Self

from tailwise.checkpoints.bytesource import AT_ONCE
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource

#: Bytes that wait in memory for their turn; a larger matrix is fetched when nothing else waits.
BYTES_AHEAD = 256 << 20


class ReadAhead:
    """The matrices of a checkpoint in the order of work, each with its bytes at hand when its turn comes."""

    def __init__(self, checkpoint: Checkpoint, order: Iterable[MatrixSource], most_bytes: int = BYTES_AHEAD) -> None:
        self._checkpoint, self._most_bytes = checkpoint, most_bytes
        self._coming = deque(order)
        self._fetched: dict[str, Future[Checkpoint]] = {}
        self._taken: set[str] = set()
        self._sizes: dict[str, int] = {}  # of what is on its way, or held
        self._guard = threading.Lock()
        self._pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="tailwise-ahead")

    def __enter__(self) -> Self:
        self._go_on()
        return self

    def __exit__(self, *_: object) -> None:
        with self._guard:
            self._coming.clear()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @contextmanager
    def opened(self, source: MatrixSource) -> Iterator[Checkpoint]:
        """What `source` is to be read from; its bytes are let go at the end."""
        with self._guard:
            waiting = self._fetched.pop(source.name, None)
            self._taken.add(source.name)
        try:
            yield self._checkpoint if waiting is None else waiting.result()
        finally:
            del waiting
            with self._guard:
                self._sizes.pop(source.name, None)
            self._go_on()

    def _go_on(self) -> None:
        with self._guard:
            while self._coming:
                if self._coming[0].name in self._taken:  # its turn came before there was room
                    self._coming.popleft()
                    continue
                size, held = self._coming[0].nbytes, sum(self._sizes.values())
                if held and held + size > self._most_bytes:
                    return
                source = self._coming.popleft()
                self._sizes[source.name] = size
                self._fetched[source.name] = self._pool.submit(self._fetch, source)

    def _fetch(self, source: MatrixSource) -> Checkpoint:
        part = self._checkpoint
        with suppress(Exception):  # the same read is tried again where its error belongs
            part = part.part(source.tensors)
            part.fetch()
        return part
