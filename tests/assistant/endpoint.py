"""A small OpenAI-compatible server that follows a script: text and tool calls in parts, and what goes wrong."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Chunk = dict[str, Any]
#: What a reply is made of: chunks of a stream, or a status and a body.
Reply = list[Chunk | str] | tuple[int, dict[str, Any]]


def text(*parts: str) -> list[Chunk | str]:
    """Content, in parts."""
    return [{"choices": [{"index": 0, "delta": {"content": part}}]} for part in parts]


def tool(
    name: str, arguments: str, *, index: int = 0, name_of_call: str = "call_1", parts: int = 1
) -> list[Chunk | str]:
    """A tool call; its arguments in so many parts."""
    size = max(1, -(-len(arguments) // parts))
    pieces = [arguments[at : at + size] for at in range(0, len(arguments), size)] or [""]
    first = {"index": index, "id": name_of_call, "type": "function", "function": {"name": name, "arguments": pieces[0]}}
    rest = [{"index": index, "function": {"arguments": piece}} for piece in pieces[1:]]
    return [{"choices": [{"index": 0, "delta": {"tool_calls": [item]}}]} for item in (first, *rest)]


@dataclass
class Script:
    """Replies, one a request; and the requests that came."""

    replies: list[Reply | Callable[[dict[str, Any]], Reply]]
    url: str = ""
    requests: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)


@contextmanager
def endpoint(*replies: Reply | Callable[[dict[str, Any]], Reply]) -> Iterator[Script]:
    """The server, on a free port of this machine."""
    script = Script(list(replies))

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["content-length"])))
            script.requests.append(body)
            script.headers.append({name.lower(): value for name, value in self.headers.items()})
            at = min(len(script.requests), len(script.replies)) - 1
            reply = script.replies[at]
            found = reply(body) if callable(reply) else reply
            if isinstance(found, tuple):
                self._send(found[0], "application/json", json.dumps(found[1]).encode())
            else:
                lines = [item if isinstance(item, str) else json.dumps({"object": "chat.completion.chunk", "id": "x",
                         "created": 1, "model": body["model"], **item}) for item in found]  # fmt: skip
                stream = "".join(f"data: {line}\n\n" for line in [*lines, "[DONE]"])
                self._send(200, "text/event-stream", stream.encode())

        def _send(self, status: int, kind: str, body: bytes) -> None:
            self.send_response(status)
            self.send_header("content-type", kind)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    script.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield script
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
