"""Large answers are sent in pieces as they are read, and only so many are held in memory at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from starlette.responses import PlainTextResponse

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

#: Bytes of an answer that is counted; of its pieces; and of all that are being sent, to one address and together.
_LARGE, _PIECE = 1 << 20, 1 << 18
_MOST_OF_ONE, _MOST = 256 << 20, 512 << 20
_BUSY = "too many large answers are being read at once; ask again when one is done"


class LargeAnswers:
    """ASGI middleware around all that makes answers.

    An answer in one piece that would be one too many is a 503 in its place; alone, one of any size is sent.
    """

    def __init__(self, app: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        self._app = app
        self._held: Counter[str] = Counter()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer as the app does."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        client = (scope.get("client") or ("",))[0]
        started: Message | None = None
        refused = False

        async def measured(message: Message) -> None:
            nonlocal started, refused
            if message["type"] == "http.response.start":
                started = message  # until it is known how much follows
                return
            if refused:
                return
            nbytes = len(message.get("body", b""))
            if nbytes <= _LARGE:
                if started is not None:
                    await send(started)
                    started = None
                await send(message)
                return
            if started is not None and not self._has_room(client, nbytes):
                refused = True
                message.clear()
                await PlainTextResponse(_BUSY, 503, {"retry-after": "30"})(scope, receive, send)
                return
            self._held[client] += nbytes
            try:
                if started is not None:
                    await send(started)
                    started = None
                await _in_pieces(message, send)
            finally:
                self._held[client] -= nbytes
                self._held += Counter()  # without those that hold nothing

        await self._app(scope, receive, measured)

    def _has_room(self, client: str, nbytes: int) -> bool:
        own, all_ = self._held[client], self._held.total()
        return all_ <= _MOST if not own else own + nbytes <= _MOST_OF_ONE and all_ + nbytes <= _MOST


async def _in_pieces(message: Message, send: Send) -> None:
    body, more = message["body"], message.get("more_body", False)
    view = memoryview(body)
    for start in range(0, len(body), _PIECE):
        last = start + _PIECE >= len(body)
        await send({**message, "body": bytes(view[start : start + _PIECE]), "more_body": more or not last})
