"""Templates: values into escaped HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tailwise.app.guard import ADMITTED
from tailwise.app.workspace import links
from tailwise.core.harmless import visible
from tailwise.report import grid
from tailwise.report.health import LEVELS as HEALTH_LEVELS
from tailwise.report.health import LIMIT as HEALTH_LIMIT

#: Area → address, in the order of the head of every page.
AREAS = {
    "Models": "/models",
    "Compare": "/compare",
    "Training": "/training",
    "Plans": "/plans",
    "Audits": "/jobs",
    "Help": "/help",
}
_LEVEL = {"error": "error", "warning": "warning", "info": "note", None: "good"}


class Pages:
    """The templates of the app."""

    def __init__(self, *, proof: str, version: str, read_only: bool) -> None:
        self._environment = Environment(
            loader=PackageLoader("tailwise.app"), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
            lstrip_blocks=True, auto_reload=False, cache_size=-1,
        )  # fmt: skip
        self._environment.filters.update(number=number, moment=moment, code=code, size=size)
        self._environment.globals.update(
            links=links,
            health_level=HEALTH_LEVELS.get,
            health_limit=HEALTH_LIMIT,
            areas=AREAS,
            proof=proof,
            version=version,
            read_only=read_only,
            level=_LEVEL.get,
        )
        for name in self._environment.list_templates(extensions=["html"]):  # while files can be opened
            self._environment.get_template(name)

    def page(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
        """A whole page; of a request by htmx with a target, the template's block of that name alone."""
        target = request.headers.get("hx-target", "")
        if request.headers.get("hx-request") == "true" and target in self._environment.get_template(template).blocks:
            return self.part(request, template, target, values, status)
        return _html(self._environment.get_template(template).render(_context(request, values)), status)

    def part(
        self, request: Request, template: str, block: str, values: Mapping[str, Any], status: int = 200
    ) -> HTMLResponse:  # fmt: skip
        """One block of a template."""
        loaded, context = self._environment.get_template(template), _context(request, values)
        # A block on its own does not see what the top of its template imports.
        parts = self._environment.get_template("parts.html").make_module(dict(context))
        return _html("".join(loaded.blocks[block](loaded.new_context({**context, "parts": parts}))), status)


def _context(request: Request, values: Mapping[str, Any]) -> dict[str, Any]:
    context = {
        "path": request.url.path,
        "area": "",
        "page_address": _pages_of(request),
        "signed_in": request.scope.get(ADMITTED, False),
        **values,
    }
    if not context["signed_in"]:
        context["proof"] = ""  # a secret of those who may write
    return context


def _html(text: str, status: int) -> HTMLResponse:
    # A file may hold halves of characters, which are no text; they must not take a page away.
    response = HTMLResponse(status_code=status)
    response.body = visible(text).encode(errors="replace")
    response.headers["content-length"] = str(len(response.body))
    return response


def _pages_of(request: Request) -> Callable[[int], str]:
    """The same address at another page of its list."""
    return lambda page: f"?{request.url.include_query_params(page=page).query}"


def number(value: object) -> str:
    """Four digits, or a dash."""
    if value is None or value == "":
        return "–"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    whole = isinstance(value, int) or (value == int(value) and abs(value) < 1e12) if math.isfinite(value) else False
    return f"{int(value):,}" if whole else f"{value:.4g}"


def moment(value: float | str | None) -> str:
    """Seconds since the epoch or ISO text → day and minute, UTC."""
    return value[:16].replace("T", " ") if isinstance(value, str) else grid.moment(value)


def size(value: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def code(text: str) -> Markup:
    """Escaped text with `…` as code."""
    return Markup(re.sub(r"`([^`]{1,400})`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped before


def static(name: str) -> bytes:
    """A file that the pages load."""
    return (files("tailwise.app") / "static" / name).read_bytes()
