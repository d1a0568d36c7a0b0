"""The MCP server over HTTP: to this machine alone unless a token is asked for; Host and Origin are checked."""

from __future__ import annotations

import hmac
import ipaddress
import socket
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    import uvicorn
    from mcp.server.lowlevel import Server

PATH = "/mcp"
_SHORTEST = 16  # signs of a token
_MOST = 4 << 20  # bytes of a request, as the library has it
_WILDCARDS = ("0.0.0.0", "::", "")  # noqa: S104 - names to refuse, not to bind

Scope = MutableMapping[str, Any]
App = Callable[[Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]


@dataclass(frozen=True)
class ListenAddress:
    """Where to listen, under which names, and which token is asked for."""

    host: str = "127.0.0.1"
    port: int = 8008
    names: Sequence[str] = ()  # other names under which clients come
    token: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        if self.token is not None and len(self.token) < _SHORTEST:
            raise UsageError(f"the token is shorter than {_SHORTEST} signs", fix="python -c 'import secrets; "
                             "print(secrets.token_urlsafe(32))' makes one")  # fmt: skip
        if not self.loopback and self.token is None:
            raise UsageError("others could reach this server without a token", where=self.host,
                             fix="set TAILWISE_MCP_TOKEN, or listen on 127.0.0.1")  # fmt: skip
        if self.host in _WILDCARDS and not self.names:
            raise UsageError("no name is told under which clients reach this server", where=self.host,
                             fix="give --allow-host with the names or addresses that clients use")  # fmt: skip

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def hosts(self, port: int) -> list[str]:
        """Values of the Host header that are taken."""
        own = ["127.0.0.1", "localhost", "[::1]"] if self.loopback else [_bracketed(self.host)]
        named = [_bracketed(name) for name in self.names]
        return [f"{name}:{port}" for name in (*own, *named)] + named


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def app_of(server: Server[Any], address: ListenAddress, port: int) -> App:
    """The ASGI application."""
    from mcp.server.transport_security import TransportSecuritySettings

    hosts = address.hosts(port)
    security = TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=[f"{scheme}://{host}" for scheme in ("http", "https") for host in hosts]
    )
    app: App = server.streamable_http_app(
        streamable_http_path=PATH,
        transport_security=security,
        host=address.host,
        json_response=True,
        stateless_http=True,
    )
    app = _in_time(app)
    return app if address.token is None else _with_token(app, address.token)


def _in_time(app: App) -> App:
    """Wait for no body longer than for those of the web app, and hold no more of them at a time."""
    from tailwise.app.bodies import BodyLimits, BodyRoom, bounded

    room = BodyRoom()

    async def patient(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        with room.share((scope.get("client") or ("",))[0]) as hold:
            await app(scope, bounded(receive, BodyLimits(_MOST), hold), send)

    return patient


def _with_token(app: App, token: str) -> App:
    """Let nothing through but what carries the token."""
    wanted = f"Bearer {token}".encode()

    async def guarded(scope: Scope, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            given = [value for name, value in scope.get("headers", ()) if name.lower() == b"authorization"]
            if scope["type"] != "http" or len(given) != 1 or not hmac.compare_digest(given[0], wanted):
                await _refuse(scope, send)
                return
        await app(scope, receive, send)

    return guarded


async def _refuse(scope: Scope, send: Any) -> None:
    if scope["type"] != "http":
        await send({"type": "websocket.close", "code": 1008})
        return
    head = [(b"content-type", b"text/plain; charset=utf-8"), (b"www-authenticate", b"Bearer")]
    await send({"type": "http.response.start", "status": 401, "headers": head})
    await send({"type": "http.response.body", "body": b"a bearer token is needed\n"})


def http_server(server: Server[Any], address: ListenAddress, port: int) -> uvicorn.Server:
    """The server behind the address, which waits for no half requests."""
    import uvicorn

    from tailwise.app.patience import Patient

    app = app_of(server, address, port)
    return uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="on", http=Patient))


def serve_http(server: Server[Any], address: ListenAddress, say: Callable[[str], None]) -> None:
    """Serve until interrupted; `say` is told the address once clients can come."""
    family = socket.AF_INET6 if ":" in address.host else socket.AF_INET
    try:
        listening = socket.create_server((address.host, address.port), family=family)
    except OSError as error:
        raise UsageError(f"cannot listen on port {address.port}: {error.strerror or error}", where=address.host,
                         fix="take another --port") from error  # fmt: skip
    with listening:
        port = int(listening.getsockname()[1])
        made = http_server(server, address, port)
        say(f"http://{_bracketed(address.host)}:{port}{PATH}")
        made.run(sockets=[listening])
