"""How much requests may send, one and all together, counted before it is kept; and answers without a body."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tailwise.app.settings import AppSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST = 65_536  # bytes of a form
_TALK, _TALK_MOST = "/assistant/ask", 2_000_000  # a question comes with what was said before
_FRAME = 100_000  # around the file of an upload
_SPOOLED = 1 << 20  # bytes of an upload in memory; what is more lies on disk
_GAP_SECONDS = 30.0  # between two pieces of a body
_BODY_SECONDS, _SLOWEST = 60.0, 50_000  # for a body: so many seconds, and those that what has come takes at this rate
_LOGIN = "/login"  # takes bodies of whoever comes
_LOGIN_MOST, _LOGIN_SECONDS = 65_536, 10.0
_SAID = "the request is larger than what is taken here"
BUSY = "too much is being sent to this server at once; try again in a moment"
#: Bytes of bodies in memory, of one address and of all. What is unfolded of them may take thirty times as much.
_HELD_OF_ONE, _HELD = 8_000_000, 16_000_000


@dataclass(frozen=True)
class BodyLimits:
    """What one request may send, and how slowly."""

    most: int = _MOST  # bytes
    seconds: float = _BODY_SECONDS  # before the first bytes are due
    slowest: int | None = _SLOWEST  # bytes a second from then on; None where `seconds` are for all of it
    held: int | None = None  # bytes of it that are in memory at a time, where those are not all

    def due(self, seen: int) -> float:
        """Seconds from its beginning that a body of which `seen` bytes have come may go on."""
        return self.seconds + (seen / self.slowest if self.slowest else 0.0)


def limits_at(path: str, settings: AppSettings) -> BodyLimits:
    """Of requests there."""
    if path == _LOGIN:
        return BodyLimits(_LOGIN_MOST, _LOGIN_SECONDS, None)
    if path == "/uploads" and not settings.read_only:
        return BodyLimits(settings.largest_upload + _FRAME, held=_SPOOLED)
    return BodyLimits(_TALK_MOST if path == _TALK else _MOST)


class BodyRoom:
    """Memory for the bodies of all requests that have not been answered yet. Used by the event loop alone."""

    def __init__(self, of_one: int = _HELD_OF_ONE, of_all: int = _HELD) -> None:
        self._of_one, self._of_all = of_one, of_all
        self._held: Counter[str] = Counter()

    @contextmanager
    def share(self, client: str) -> Iterator[Callable[[int], None]]:
        """What counts the bytes that a request of a client holds until it is answered; 503 where there is no room."""
        own = 0

        def hold(nbytes: int) -> None:
            nonlocal own
            more = nbytes - own
            if self._held[client] + more > self._of_one or self._held.total() + more > self._of_all:
                raise HTTPException(503, BUSY, {"retry-after": "10", "connection": "close"})
            self._held[client] += more
            own = nbytes

        try:
            yield hold
        finally:
            self._held[client] -= own
            self._held += Counter()  # without those that hold nothing


def too_large(headers: Headers, most: int) -> Response | None:
    """The refusal of a request that says itself that it is too large."""
    length = headers.get("content-length", "")
    return JSONResponse({"error": _SAID}, 413) if length.isdecimal() and int(length[:20]) > most else None


def bounded(receive: Receive, limits: BodyLimits, hold: Callable[[int], None]) -> Receive:
    """The same, which fails as soon as more has come, nothing for long, or too little for the time that went by.

    `hold` is told how much of it is in memory, and fails where that is too much beside what others sent.
    """
    seen, whole = 0, False
    began = time.monotonic()

    async def counted() -> Message:
        nonlocal seen, whole
        if whole:  # what comes now is that the other side has gone
            return await receive()
        left = began + limits.due(seen) - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(min(_GAP_SECONDS, left), 0.0))
        except TimeoutError:
            raise HTTPException(408, "the request did not come to its end in time", {"connection": "close"}) from None
        seen += len(message.get("body", b""))
        if seen > limits.most:
            raise HTTPException(413, _SAID)
        hold(seen if limits.held is None else min(seen, limits.held))
        whole = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return counted


def without_body(send: Send) -> Send:
    """The same, which sends the head and nothing else; of a stream without end, too."""
    ended = False

    async def head(message: Message) -> None:
        nonlocal ended
        if message["type"] == "http.response.start":
            await send(message)
        elif not ended:
            ended = True
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    return head
