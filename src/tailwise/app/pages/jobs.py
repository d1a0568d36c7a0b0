"""Audits that are started here, followed, cancelled; and audits that are brought as files."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Request
from fastapi.responses import HTMLResponse
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from tailwise.app.before_the_body import CheckedRoute, check_first
from tailwise.app.event_stream import event, stream
from tailwise.app.jobs.start import Wish, start
from tailwise.app.page_context import PageContext, context_of
from tailwise.app.uploads import received
from tailwise.app.workspace import links
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe
from tailwise.spectrum.power_law import estimator_names

router = APIRouter(include_in_schema=False, route_class=CheckedRoute)
Given = Annotated[PageContext, Depends(context_of)]
_LOOK = 0.3


def _values(context: PageContext, **more: Any) -> dict[str, Any]:
    known = {str(entry.path): entry.id for entry in context.workspace.entries("audit")}
    return {"area": "Audits", "jobs": context.queue.jobs(), "known": known, "settings": context.settings,
            "roots": context.workspace.roots, "message": "", "given": None, "estimators": estimator_names(),
            "usual_estimator": Recipe().estimator, **more}  # fmt: skip


@router.get("/jobs")
def jobs(request: Request, context: Given, model: str = "") -> HTMLResponse:
    """The queue, and the form to start an audit."""
    return context.pages.page(request, "jobs.html", _values(context, given=model))


@router.post("/jobs")
@check_first(PageContext.check_starts)
def begin(request: Request, context: Given, wish: Annotated[Wish, Form()]) -> HTMLResponse:
    """Start an audit."""
    message = ""
    try:
        start(context, wish)
    except UsageError as error:
        message = str(error)
    return context.pages.page(request, "jobs.html", _values(context, message=message, given=wish.model))


@router.post("/jobs/{name}/cancel")
def cancel(request: Request, context: Given, name: str) -> HTMLResponse:
    """End an audit that waits or runs."""
    context.check_writable()
    context.queue.cancel(name)
    return context.pages.page(request, "jobs.html", _values(context))


@router.get("/jobs/events")
async def events(request: Request, context: Given) -> StreamingResponse:
    """Server-sent events: the queue, whenever it changes."""

    async def looks() -> AsyncIterator[bytes]:
        seen = None
        while not (context.ending.is_set() or await request.is_disconnected()):
            found = [job.to_json() for job in await run_in_threadpool(context.queue.jobs)]
            if found != seen:
                yield event("jobs", [{**job, "output": Path(job["output"]).name} for job in found])
                seen = found
            await asyncio.sleep(_LOOK)

    return stream(looks())


@router.post("/uploads")
async def upload(request: Request, context: Given) -> HTMLResponse:
    """Take an audit file. What comes is read here, since FastAPI would read it before anything is asked."""
    found: WorkspaceEntry | UsageError
    try:
        found = await received(request, context)
    except UsageError as error:
        found = error
    return await run_in_threadpool(_taken, request, context, found)


def _taken(request: Request, context: PageContext, found: WorkspaceEntry | UsageError) -> HTMLResponse:
    if isinstance(found, UsageError):
        return context.pages.page(request, "jobs.html", _values(context, message=str(found)), 400)
    response = context.pages.page(request, "jobs.html", _values(context))
    response.headers["hx-redirect"] = links.model(found.id)
    return response


@router.put("/models/{audit}/tags")
@check_first(PageContext.check_writable)
def tags(request: Request, context: Given, audit: str, text: Annotated[str, Form(max_length=900)] = "") -> HTMLResponse:
    """Replace the tags of an audit."""
    entry = context.workspace.entry(audit, "audit")
    found = context.tags.put(entry, text)
    return context.pages.page(request, "tags.html", {"entry": entry, "tags": found})
