"""Answers of a language model's server, of which no more is taken than an answer can have, nor longer waited for."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from tailwise.app.assistant.events import AnswerEndedError

#: Bytes of all of an answer (each of its words comes in some hundreds), of one line of it, and of why there is none.
_MOST, _LINE, _REASON = 32 << 20, 1 << 20, 1 << 20


def bounded(response: Any, until: float) -> None:
    """Bound what is read of a response of httpx; `until` is of the monotonic clock. Refuses one that is packed."""
    if response.headers.get("content-encoding", "identity").strip().lower() not in ("", "identity"):
        raise AnswerEndedError("the answer is packed, which was not asked for")
    # openai takes httpx or httpx2, whichever is there, and a stream must be of the class of that one.
    of = next(kind for kind in type(response.stream).__mro__ if kind.__name__ == "SyncByteStream")
    most = _REASON if response.is_error else _MOST
    response.stream = type("BoundedStream", (_BoundedStream, of), {})(response.stream, most, until)


class _BoundedStream:
    """Passes on what comes, as long as it is no more and no later than it may be."""

    def __init__(self, stream: Any, most: int, until: float) -> None:
        self._stream, self._most, self._until = stream, most, until

    def __iter__(self) -> Iterator[bytes]:
        came, line = 0, 0
        for part in self._stream:
            came += len(part)
            last = part.rfind(b"\n")
            line = line + len(part) if last < 0 else len(part) - last - 1
            if time.monotonic() > self._until:
                raise AnswerEndedError("the answer took too long")
            # The library keeps what belongs to one event until that is whole.
            if came > self._most or line > _LINE:
                raise AnswerEndedError("the answer has no end")
            yield part

    def close(self) -> None:
        """As the stream within does."""
        self._stream.close()
