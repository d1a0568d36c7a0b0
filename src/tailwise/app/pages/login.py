"""The token, asked once for a browser."""

from __future__ import annotations

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Form, Query, Request, Response
from fastapi.responses import RedirectResponse
from starlette.exceptions import HTTPException

from tailwise.app.before_the_body import CheckedRoute, check_first
from tailwise.app.guard import cookie_of, same, session_of
from tailwise.app.page_context import PageContext, context_of

router = APIRouter(include_in_schema=False, route_class=CheckedRoute)
Given = Annotated[PageContext, Depends(context_of)]


Next = Annotated[str, Query(max_length=8000)]
#: An address on this server: browsers take two slashes, or one and a backslash, for another host.
_OURS = re.compile(r"/(?![/\\])[!-~]*")


@router.get("/login")
def ask(request: Request, context: Given, next: Next = "/") -> Response:  # noqa: A002 - its name in the address
    """The form."""
    if context.settings.token is None:
        return RedirectResponse(_own(next), 303)
    return _form(request, context, next)


def _own(address: str) -> str:
    return address if _OURS.fullmatch(address) else "/"


def _form(request: Request, context: PageContext, after: str, message: str = "", status: int = 200) -> Response:
    values = {"message": message, "signed_in": False, "next": _own(after)}
    return context.pages.page(request, "login.html", values, status)


def _check_tries(context: PageContext) -> None:
    if context.settings.token is not None and context.logins.full:
        raise HTTPException(429)


@router.post("/login")
@check_first(_check_tries)
def take(
    request: Request, context: Given, token: Annotated[str, Form(max_length=500)] = "",
    next: Annotated[str, Form(max_length=8000)] = "/",  # noqa: A002
) -> Response:  # fmt: skip
    """The cookie, for the right token."""
    expected = context.settings.token
    if expected is None:
        return RedirectResponse(_own(next), 303)
    if not context.logins.allows():
        return _form(request, context, next, "Too many tries: wait a minute.", 429)
    if not same(token, expected):
        return _form(request, context, next, "That is not the token.", 401)
    response = RedirectResponse(_own(next), 303)
    secure = request.url.scheme == "https"
    response.set_cookie(
        cookie_of(context.settings), session_of(expected), httponly=True, samesite="strict", secure=secure,
        max_age=30 * 86400,
    )  # fmt: skip
    return response
