"""Connections that send half a request, or read no answer, are closed: neither side waits for long.

No client has more than so many at a time: first those give way to a new one that read nothing of their answers, then of
those that ask for nothing the oldest.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds from the first byte of a request, or from the connection, until its head is there.
HEAD_SECONDS = 15.0
#: Seconds between looks at what was read of an answer, those in which a part of it has to be, and bytes a second.
LOOK_SECONDS, STALL_SECONDS, SLOWEST = 5.0, 30.0, 1000
#: Seconds that an answer may still take when the server ends; fewer than uvicorn waits for all.
LAST_SECONDS = 2.0
#: Connections from one address, closing ones too. Behind a proxy all clients are one.
MOST_CONNECTIONS = 256
_numbers = itertools.count(1)  # a loop's time is not fine enough to tell which of two came first


class _Counted:
    """A transport that counts what is written."""

    def __init__(self, inner: asyncio.Transport) -> None:
        self._inner, self._written = inner, 0

    def write(self, data: bytes) -> None:
        self._written += len(data)
        self._inner.write(data)

    @property
    def waiting(self) -> int:
        """Bytes that the other side has not taken."""
        return self._inner.get_write_buffer_size()

    @property
    def taken(self) -> int:
        """Bytes that it has."""
        return self._written - self.waiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class Patient(H11Protocol):
    """uvicorn's protocol, which itself waits as long as the other side likes, for a head and for being read."""

    _closing: asyncio.TimerHandle | None = None
    _looking: asyncio.TimerHandle | None = None
    _counted: _Counted
    _number = 0
    _looked = _stalled = _due = 0.0  # when it was looked last; since when nothing was taken; when more has to be
    _taken = _taken_then = 0  # bytes at the last look, and at the beginning of the time that ends with `_due`

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        self._counted = _Counted(transport)
        super().connection_made(self._counted)  # type: ignore[arg-type]  # it is a transport but in name
        self._number = next(_numbers)
        self._wait()
        self._due = self.loop.time() + STALL_SECONDS
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        self._make_room()

    def data_received(self, data: bytes) -> None:
        """Wait on as long as what has come is no whole head."""
        super().data_received(data)
        if self._waits_for_a_request():
            self._wait()
        else:
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing more to wait for."""
        self._stop()
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """End with the server, which waits a little for what is being read, and not for what nobody reads."""
        super().shutdown()
        if self._counted.waiting:
            self.loop.call_later(LAST_SECONDS, self._counted.abort)

    def _look(self) -> None:
        """Look at what was taken, and end a connection whose other side takes nothing, or next to nothing."""
        now, taken, waits = self.loop.time(), self._counted.taken, self._counted.waiting > 0
        self._looking = self.loop.call_later(LOOK_SECONDS, self._look)
        if not waits or taken > self._taken:
            self._stalled = 0.0
        elif not self._stalled:
            self._stalled = now
        self._taken = taken
        if not waits or taken - self._taken_then >= SLOWEST * STALL_SECONDS:
            self._taken_then, self._due = taken, now + STALL_SECONDS
        elif now >= self._due:
            self._counted.abort()

    def _make_room(self) -> None:
        """Close one connection of this client where it has too many: this one where all others are at work."""
        if self.client is None:
            return
        alike = [one for one in self.connections if isinstance(one, Patient) and one._is_of(self.client[0])]
        if len(alike) > MOST_CONNECTIONS:
            others = [one for one in alike if one is not self]
            least = min(others, key=lambda one: (one._use(), one._number), default=self)
            (least if least._use() < _AT_WORK else self)._give_way()

    def _use(self) -> int:
        """How much a connection is needed."""
        if self._counted.is_closing() or self._stalled:
            return 0
        return 1 if self._waits_for_a_request() else _AT_WORK

    def _give_way(self) -> None:
        if self._counted.waiting:
            self._counted.abort()
        else:
            self.transport.close()

    def _is_of(self, host: str) -> bool:
        gone = self._counted.is_closing() and not self._counted.waiting
        return self.client is not None and self.client[0] == host and not gone

    def _waits_for_a_request(self) -> bool:
        return self.cycle is None or bool(self.cycle.response_complete)

    def _wait(self) -> None:
        if self._closing is None:
            self._closing = self.loop.call_later(HEAD_SECONDS, self._close)

    def _stop(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None

    def _close(self) -> None:
        self._closing = None
        if self._waits_for_a_request() and not self.transport.is_closing():
            self.transport.close()


_AT_WORK = 2  # of a connection whose request is being answered
