"""How much a request may send, counted before anything is kept of it; and answers without a body."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, Response

from tailwise.app.settings import Settings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

_MOST = 2_000_000  # bytes of any form or question
_FRAME = 100_000  # around the file of an upload
_SAID = "the request is larger than what is taken here"


def largest(path: str, settings: Settings) -> int:
    """Bytes that a request there may have."""
    return settings.largest_upload + _FRAME if path == "/uploads" and not settings.read_only else _MOST


def too_large(headers: Headers, most: int) -> Response | None:
    """The refusal of a request that says itself that it is too large."""
    length = headers.get("content-length", "")
    return JSONResponse({"error": _SAID}, 413) if length.isdecimal() and int(length[:20]) > most else None


def bounded(receive: Receive, most: int) -> Receive:
    """The same, which fails as soon as more has come. Forms are spooled to disk while they are read."""
    seen = 0

    async def counted() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, _SAID)
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
