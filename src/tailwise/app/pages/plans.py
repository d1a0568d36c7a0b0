"""Plans: what is to be done to which tensor, what it was held to be worth, and files for other tools."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse

from tailwise.app.page_context import PageContext, context_of
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.compression.export.exporter import EXPORTERS, export
from tailwise.compression.plans.plan import Plan
from tailwise.core.atomic import could_not_write
from tailwise.core.errors import TailwiseError

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
_SIZE = 100


@router.get("/plans")
def plans(request: Request, context: Given, page: int = 1) -> HTMLResponse:
    """All plans; those of a page are read."""
    entries = context.workspace.entries("plan")
    pages = max(1, -(-len(entries) // _SIZE))
    page = max(1, min(page, pages))
    lines = [(entry, *_read(context, entry)) for entry in entries[(page - 1) * _SIZE : page * _SIZE]]
    values = {"area": "Plans", "lines": lines, "total": len(entries), "page": page, "pages": pages}
    return context.pages.page(request, "plans.html", values)


def _read(context: PageContext, entry: WorkspaceEntry) -> tuple[Plan | None, str]:
    try:
        return context.workspace.plan(entry.id), ""
    except TailwiseError as error:
        return None, error.what


@router.get("/plans/{name}")
def plan(request: Request, context: Given, name: str, page: int = 1, q: str = "") -> HTMLResponse:
    """One plan."""
    entry, loaded = context.workspace.entry(name, "plan"), context.workspace.plan(name)
    words = q.lower().split()
    lines = [one for one in loaded if all(word in f"{one.tensor} {one.role} {one.format}".lower() for word in words)]
    pages = max(1, -(-len(lines) // _SIZE))
    page = max(1, min(page, pages))
    values = {
        "area": "Plans", "entry": entry, "plan": loaded, "lines": lines[(page - 1) * _SIZE : page * _SIZE],
        "total": len(lines), "page": page, "pages": pages, "q": q, "exporters": list(EXPORTERS),
        "models": _audits_of(context, loaded), "tried": _tried(loaded), "source": f"/api/plans/{name}/chart",
    }  # fmt: skip
    return context.pages.page(request, "plan.html", values)


def _tried(plan: Plan) -> tuple[list[str], list[dict[str, Any]]]:
    rows = [dict(one) for one in plan.tried]
    flat = [{key: value for key, value in row.items() if not isinstance(value, dict | list)} for row in rows]
    return list(dict.fromkeys(key for row in flat for key in row)), flat


def _audits_of(context: PageContext, plan: Plan) -> list[WorkspaceEntry]:
    """The audits that the plan may have been made from."""
    if not plan.fingerprint:
        return []
    audits = []
    for entry in context.workspace.entries("audit"):
        overview = context.overviews.ready(entry)
        if overview is None or overview.model != plan.model:
            continue
        with contextlib.suppress(TailwiseError):  # it changed, or went away
            if context.workspace.audit(entry.id).provenance.fingerprint == plan.fingerprint:
                audits.append(entry)
    return audits


@router.get("/plans/{name}/export/{tool}")
def exported(context: Given, name: str, tool: str) -> Response:
    """The plan as another tool reads it, as a file."""
    plan = context.workspace.plan(name)
    suffix = EXPORTERS[tool].suffixes[0]
    try:
        with tempfile.TemporaryDirectory(prefix="tailwise-export-") as folder:
            target = Path(folder) / f"plan{suffix}"
            written = next(iter(export(plan, tool, str(target))))
            data, suffix = Path(written).read_bytes(), Path(written).suffix
    except OSError as error:
        raise could_not_write(error, Path(tempfile.gettempdir())) from error
    headers = {"content-disposition": f'attachment; filename="{name}-{tool}{suffix}"'}
    return Response(data, media_type="application/octet-stream", headers=headers)
