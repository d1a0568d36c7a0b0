"""What every request passes: host, origin, token, size, and proof that a write comes from our own pages."""

from __future__ import annotations

import hmac
import ipaddress
import re
import secrets
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response

from tailwise.app.bodies import BodyRoom, bounded, limits_at, too_large, without_body
from tailwise.app.settings import AppSettings, is_loopback
from tailwise.core.storage import json_of

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PROOF = "x-csrf-token"
_HOST = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[^\[\]:/?#@\\\s]+)(?::\d{1,5})?")  # RFC 9110, 7.2: uri-host [":" port]
_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})
ADMITTED = "tailwise.admitted"  # in the scope: whether the token was shown, or none is needed
_WILDCARDS = ("0.0.0.0", "::")  # noqa: S104 - they are looked for, not bound to
_AT_THE_DOOR = 1_000_000  # bytes of tokens that one address may be sending
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "font-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """ASGI middleware around the whole app."""

    def __init__(
        self, app: Callable[[Scope, Receive, Send], Awaitable[None]], settings: AppSettings, proof: str
    ) -> None:
        self._app, self._settings, self._proof = app, settings, proof
        self._anywhere = settings.host in _WILDCARDS
        self._names = {name.lower() for name in (*settings.names, settings.host)} - set(_WILDCARDS)
        # Who has no token yet takes no room from those who have it.
        self._room, self._room_at_the_door = BodyRoom(), BodyRoom(_AT_THE_DOOR, 2 * _AT_THE_DOOR)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse, or pass on with the headers that every answer carries."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        if scope["type"] != "http":
            return

        async def with_headers(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
                headers.setdefault("cache-control", "no-store")
            await send(message)

        headers = Headers(scope=scope)
        limits = limits_at(scope["path"], self._settings)
        refusal = self._refusal(scope, headers) or too_large(headers, limits.most)
        if refusal is not None and _by_htmx(headers):
            refusal = _for_a_part(refusal)
        inner = dict(scope, **{ADMITTED: self._admits(headers)})
        answer: Send = with_headers
        if scope["method"] == "HEAD":
            inner["method"] = "GET"  # the same answer, of which the head alone is sent
            answer = without_body(with_headers)
        room = self._room_at_the_door if scope["path"] == "/login" else self._room
        with room.share((scope.get("client") or ("",))[0]) as hold:
            await (refusal or self._app)(inner, bounded(receive, limits, hold), answer)

    def _refusal(self, scope: Scope, headers: Headers) -> Response | None:
        method, path = scope["method"], scope["path"]
        if len(headers.getlist("host")) > 1 or not self._knows(headers.get("host", "")):
            return PlainTextResponse("This host name is not served here.", 421)
        if not self._admits(headers) and path != "/login" and not path.startswith("/static/"):
            if path.startswith("/api/") or method not in _SAFE or _by_htmx(headers):
                return JSONResponse({"error": "a token is needed"}, 401, {"WWW-Authenticate": "Bearer"})
            return RedirectResponse(_login(scope), 303)
        return None if method in _SAFE or path == "/login" else self._unproven(headers)

    def _unproven(self, headers: Headers) -> Response | None:
        """Why a write is refused: another site's page may make a browser send it."""
        if self._foreign(headers):
            return JSONResponse({"error": "the request comes from another site"}, 403)
        if not (self._bears(headers) or same(headers.get(PROOF, ""), self._proof)):
            return JSONResponse({"error": f"the header {PROOF} is missing or old; load the page again"}, 403)
        return None

    # Starlette's TrustedHostMiddleware knows names alone, no numbers of this machine (127.0.0.0/8, ::1), looks at the
    # first of several hosts, and answers 400.
    def _knows(self, host: str) -> bool:
        if _HOST.fullmatch(host) is None:
            return False
        try:
            name = (urlsplit(f"//{host}").hostname or "").lower()
        except ValueError:
            return False
        # A page of another site can be made to resolve to this machine by name, never by number.
        return is_loopback(name) or name in self._names or (self._anywhere and _is_number(name))

    def _admits(self, headers: Headers) -> bool:
        token = self._settings.token
        if token is None:
            return True
        shown = cookie_parser(headers.get("cookie", "")).get(cookie_of(self._settings), "")
        return self._bears(headers) or same(shown, session_of(token))

    def _bears(self, headers: Headers) -> bool:
        token, given = self._settings.token, headers.get("authorization", "")
        return token is not None and given.lower().startswith("bearer ") and same(given[7:].strip(), token)

    @staticmethod
    def _foreign(headers: Headers) -> bool:
        if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
            return True
        origin = headers.get("origin")
        try:
            return origin is not None and urlsplit(origin).netloc.lower() != headers.get("host", "").lower()
        except ValueError:
            return True


def _by_htmx(headers: Headers) -> bool:
    return headers.get("hx-request") == "true"


def _for_a_part(refusal: Response) -> Response:
    """Of a page that asked: what it shows must not be replaced by a refusal, which stands above it in words."""
    text = bytes(refusal.body).decode()
    message = json_of(text)["error"] if isinstance(refusal, JSONResponse) else text
    headers = {"hx-retarget": "#problem", "hx-reswap": "textContent"}
    if refusal.status_code == 401:
        headers["hx-redirect"] = "/login"
    return PlainTextResponse(message, refusal.status_code, headers)


def _login(scope: Scope) -> str:
    """The form, which leads back to what was asked for."""
    query = scope["query_string"].decode("latin-1")
    wanted = quote(scope["path"]) + (f"?{query}" if query else "")
    return "/login" if wanted == "/" else f"/login?next={quote(wanted, safe='')}"


def cookie_of(settings: AppSettings) -> str:
    """The name of the cookie: browsers do not tell the ports of a machine apart, and each server has its own token."""
    return f"tailwise-{settings.port}"


def same(one: str, other: str) -> bool:
    """Whether two secrets agree, in a time that does not tell where they differ."""
    return hmac.compare_digest(_bytes(one), _bytes(other))


def session_of(token: str) -> str:
    """What the cookie holds: not the token itself."""
    return hmac.new(_bytes(token), b"tailwise session", "sha256").hexdigest()


def _is_number(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _bytes(text: str) -> bytes:
    return text.encode(errors="surrogateescape")


def new_proof() -> str:
    """A secret of this server, which its pages send back with every write."""
    return secrets.token_urlsafe(24)


class Rate:
    """At most so many events within a minute."""

    def __init__(self, most: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock, self._lock = most, clock, threading.Lock()
        self._times: deque[float] = deque()

    def allows(self) -> bool:
        """Count one event, unless there were too many."""
        with self._lock:
            if self._is_full():
                return False
            self._times.append(self._clock())
            return True

    @property
    def full(self) -> bool:
        """Whether one more would be too many, which is not counted."""
        with self._lock:
            return self._is_full()

    def _is_full(self) -> bool:
        now = self._clock()
        while self._times and now - self._times[0] >= 60.0:
            self._times.popleft()
        return len(self._times) >= self._most
