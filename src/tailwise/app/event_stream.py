"""Server-sent events.

Not FastAPI's own: those begin with 200 before the first look, where an unknown run must be a 404 and a full house a
400, may be stored (`no-cache`, not `no-store`), and take one of the server's few threads as long as an answer lasts.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from starlette.responses import StreamingResponse

_LOOK = 0.3  # seconds between looks at whether the server is to end


def event(name: str, data: Any) -> bytes:
    """One event. JSON has no line breaks, which would end it."""
    return f"event: {name}\ndata: {json.dumps(data, ensure_ascii=False)}\n\n".encode(errors="replace")


def stream(chunks: AsyncIterator[bytes]) -> StreamingResponse:
    """The answer that sends them as they come."""
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(chunks, media_type="text/event-stream", headers=headers)


async def from_a_thread(make: Callable[[], Iterator[bytes]], ending: threading.Event) -> AsyncIterator[bytes]:
    """What an iterator gives that may wait for others for minutes.

    It runs in a thread of its own: those of the server are few, and a server does not end before they do.
    """
    loop, given, stop = asyncio.get_running_loop(), asyncio.Queue[bytes | None](), threading.Event()

    def put(chunk: bytes | None) -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(given.put_nowait, chunk)

    def work() -> None:
        try:
            for chunk in make():
                if stop.is_set():
                    break
                put(chunk)
        finally:
            put(None)

    threading.Thread(target=work, name="tailwise-answer", daemon=True).start()
    try:
        while not ending.is_set():
            with contextlib.suppress(TimeoutError):
                chunk = await asyncio.wait_for(given.get(), _LOOK)
                if chunk is None:
                    return
                yield chunk
    finally:
        stop.set()
