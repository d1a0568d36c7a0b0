"""How much a request may send, counted before anything is kept of it; and answers without a body."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
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
_BODY_SECONDS, _SLOWEST = 60.0, 50_000  # for a body: so many seconds, and those that bytes take at this rate
_SAID = "the request is larger than what is taken here"


def largest(path: str, settings: AppSettings) -> int:
    """Bytes that a request there may have."""
    return settings.largest_upload + _FRAME if path == "/uploads" and not settings.read_only else _MOST


def too_large(headers: Headers, most: int) -> Response | None:
    """The refusal of a request that says itself that it is too large."""
    length = headers.get("content-length", "")
    return JSONResponse({"error": _SAID}, 413) if length.isdecimal() and int(length[:20]) > most else None


def bounded(receive: Receive, most: int) -> Receive:
    """The same, which fails as soon as more has come, or nothing for long. Forms are spooled to disk as they come."""
    seen, whole = 0, False
    began = time.monotonic()

    async def counted() -> Message:
        nonlocal seen, whole
        if whole:  # what comes now is that the other side has gone
            return await receive()
        left = began + _BODY_SECONDS + most / _SLOWEST - time.monotonic()
        try:
            message = await asyncio.wait_for(receive(), max(min(_GAP_SECONDS, left), 0.0))
        except TimeoutError:
            raise HTTPException(408, "the request did not come to its end in time", {"connection": "close"}) from None
        seen += len(message.get("body", b""))
        if seen > most:
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
