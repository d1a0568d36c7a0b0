"""What is refused before anything of the body is read: FastAPI reads it all before it asks a dependency."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from fastapi import Request, Response
from fastapi.routing import APIRoute

from tailwise.app.page_context import PageContext, context_of

Check = Callable[[PageContext], None]
Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])
_CHECK = "tailwise_check"


def check_first(check: Check) -> Callable[[Endpoint], Endpoint]:
    """Mark an endpoint of a router of `CheckedRoute`s: `check` raises where its body need not be read."""

    def marked(endpoint: Endpoint) -> Endpoint:
        setattr(endpoint, _CHECK, check)
        return endpoint

    return marked


class CheckedRoute(APIRoute):
    """A route that asks the check of its endpoint first."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """What answers a request."""
        handle = super().get_route_handler()
        check: Check | None = getattr(self.endpoint, _CHECK, None)
        if check is None:
            return handle

        async def checked(request: Request) -> Response:
            check(context_of(request))
            return await handle(request)

        return checked
