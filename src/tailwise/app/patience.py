"""Connections that send half a request are closed: a page's head comes at once, and a body without long gaps.

No client has more than so many at a time: of those that ask for nothing, the oldest gives way to a new one.
"""

from __future__ import annotations

import asyncio
import itertools

from uvicorn.protocols.http.h11_impl import H11Protocol

#: Seconds from the first byte of a request, or from the connection, until its head is there.
HEAD_SECONDS = 15.0
#: Connections from one address. Behind a proxy all clients are one.
MOST_CONNECTIONS = 256
_numbers = itertools.count(1)  # a loop's time is not fine enough to tell which of two came first


class Patient(H11Protocol):
    """uvicorn's protocol, which itself waits for a head as long as the other side likes."""

    _closing: asyncio.TimerHandle | None = None
    _number = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._number = next(_numbers)
        self._wait()
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
        super().connection_lost(exc)

    def _make_room(self) -> None:
        """Close one connection of this client where it has too many: this one where all others are at work."""
        if self.client is None:
            return
        alike = [one for one in self.connections if isinstance(one, Patient) and one._is_of(self.client[0])]
        if len(alike) > MOST_CONNECTIONS:
            idle = [one for one in alike if one is not self and one._waits_for_a_request()]
            min(idle, key=lambda one: one._number, default=self).transport.close()

    def _is_of(self, host: str) -> bool:
        return self.client is not None and self.client[0] == host and not self.transport.is_closing()

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
