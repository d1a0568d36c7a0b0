"""Templates: values into escaped HTML."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from tailwise.app.guard import ADMITTED
from tailwise.workspace import links

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
            lstrip_blocks=True,
        )  # fmt: skip
        self._environment.filters.update(number=number, moment=moment, code=code, size=size)
        self._environment.globals.update(
            links=links, areas=AREAS, proof=proof, version=version, read_only=read_only, level=_LEVEL.get
        )

    def page(self, request: Request, template: str, values: Mapping[str, Any], status: int = 200) -> HTMLResponse:
        """A whole page; of a request by htmx with a target, the template's block of that name alone."""
        found = self._environment.get_template(template)
        target = request.headers.get("hx-target", "")
        context = {
            "path": request.url.path,
            "area": "",
            "page_address": _pages_of(request),
            "signed_in": request.scope.get(ADMITTED, False),
            **values,
        }
        if not context["signed_in"]:
            context["proof"] = ""  # a secret of those who may write
        if request.headers.get("hx-request") == "true" and target in found.blocks:
            # A block on its own does not see what the top of its template imports.
            parts = self._environment.get_template("parts.html").make_module(dict(context))
            built = found.new_context({**context, "parts": parts})
            return HTMLResponse("".join(found.blocks[target](built)), status)
        return HTMLResponse(found.render(context), status)


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
    if value is None:
        return "–"
    if isinstance(value, str):
        return value[:16].replace("T", " ")
    return datetime.fromtimestamp(value, UTC).strftime("%Y-%m-%d %H:%M")


def size(value: float) -> str:
    """Bytes as people read them."""
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.1f} TB"


def code(text: str) -> Markup:
    """Escaped text with `…` as code."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704  # escaped before


def static(name: str) -> bytes:
    """A file that the pages load."""
    return (files("tailwise.app") / "static" / name).read_bytes()
