"""How much a request may send, counted before anything is kept of it; and answers without a body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tailwise.app.settings import AppSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST = 2_000_000  # bytes of any form or question
_FRAME = 100_000  # around the file of an upload
_GAP_SECONDS = 30.0  # between two pieces of a body
_BODY_SECONDS, _SLOWEST = 60.0, 50_000  # for a body: so many seconds, and those that what has come takes at this rate
_LOGIN = "/login"  # takes bodies of whoever comes
_LOGIN_MOST, _LOGIN_SECONDS = 65_536, 10.0
_SAID = "the request is larger than what is taken here"


@dataclass(frozen=True)
class BodyLimits:
    """What one request may send, and how slowly."""

    most: int = _MOST  # bytes
    seconds: float = _BODY_SECONDS  # before the first bytes are due
    slowest: int | None = _SLOWEST  # bytes a second from then on; None where `seconds` are for all of it

    def due(self, seen: int) -> float:
        """Seconds from its beginning that a body of which `seen` bytes have come may go on."""
        return self.seconds + (seen / self.slowest if self.slowest else 0.0)


def limits_at(path: str, settings: AppSettings) -> BodyLimits:
    """Of requests there."""
    if path == _LOGIN:
        return BodyLimits(_LOGIN_MOST, _LOGIN_SECONDS, None)
    return BodyLimits(settings.largest_upload + _FRAME if path == "/uploads" and not settings.read_only else _MOST)


def too_large(headers: Headers, most: int) -> Response | None:
    """The refusal of a request that says itself that it is too large."""
    length = headers.get("content-length", "")
    return JSONResponse({"error": _SAID}, 413) if length.isdecimal() and int(length[:20]) > most else None


def bounded(receive: Receive, limits: BodyLimits) -> Receive:
    """The same, which fails as soon as more has come, nothing for long, or too little for the time that went by.

    Forms are spooled to disk as they come.
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
