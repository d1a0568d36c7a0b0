"""The token, asked once for a browser."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Form, Request, Response
from fastapi.responses import RedirectResponse

from tailwise.app.desk import Desk, desk_of
from tailwise.app.guard import COOKIE, same, session_of

router = APIRouter(include_in_schema=False)
Given = Annotated[Desk, Depends(desk_of)]


@router.get("/login")
def ask(request: Request, desk: Given) -> Response:
    """The form."""
    if desk.settings.token is None:
        return RedirectResponse("/", 303)
    return desk.pages.page(request, "login.html", {"message": "", "signed_in": False})


@router.post("/login")
def take(request: Request, desk: Given, token: Annotated[str, Form(max_length=500)] = "") -> Response:
    """The cookie, for the right token."""
    expected = desk.settings.token
    if expected is None:
        return RedirectResponse("/", 303)
    if not desk.logins.allows():
        return desk.pages.page(
            request, "login.html", {"message": "Too many tries: wait a minute.", "signed_in": False}, 429
        )
    if not same(token, expected):
        return desk.pages.page(request, "login.html", {"message": "That is not the token.", "signed_in": False}, 401)
    response = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, session_of(expected), httponly=True, samesite="strict", secure=secure, max_age=30 * 86400
    )
    return response
