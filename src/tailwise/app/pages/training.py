"""Training: runs of a store, live."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from tailwise.app.arriving import arriving
from tailwise.app.event_stream import event, stream
from tailwise.app.page_context import PageContext, context_of
from tailwise.core.errors import TailwiseError, unknown_name
from tailwise.history.read import RunSummary

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
_LOOK = 1.0  # seconds between looks into the store
_USUAL = ("alpha", "alpha_hill", "stable_rank", "log_spectral_norm", "num_traps")


class Shown(BaseModel):
    """What is asked of the page of a run."""

    metric: list[str] = Field(default_factory=list, max_length=20)
    log: bool = False
    smooth: float = Field(0.0, ge=0, lt=1)
    beside: list[str] = Field(default_factory=list, max_length=3)

    def query(self, name: str) -> str:
        """For the chart of the scalars."""
        pairs = [("name", name), *(("beside", one) for one in self.beside)]
        pairs += [("log", "1")] if self.log else []
        return urlencode([*pairs, ("smooth", f"{self.smooth:g}")] if self.smooth else pairs)


@router.get("/training")
def training(request: Request, context: Given) -> HTMLResponse:
    """All runs."""
    store = context.workspace.store
    runs = [] if store is None else context.workspace.history.runs()
    return context.pages.page(
        request, "training.html", {"area": "Training", "store": store, "runs": runs, "arriving": arriving}
    )


def summary_of(context: PageContext, name: str) -> RunSummary:
    """The run of that name. `UnknownNameError` otherwise."""
    runs = {run.name: run for run in context.workspace.history.runs()}
    if name not in runs:
        raise unknown_name("run", name, runs)
    return runs[name]


@router.get("/training/run")
def run(request: Request, context: Given, name: str, asked: Annotated[Shown, Query()]) -> HTMLResponse:
    """One run: its alarms, its loss, its metrics by role, audits."""
    metric = asked.metric
    history = context.workspace.history
    summary, metrics = summary_of(context, name), history.metrics(name)
    chosen = [one for one in metric or () if one in metrics] or [one for one in _USUAL if one in metrics] or metrics[:2]
    known = {str(entry.path): entry.id for entry in context.workspace.entries("audit")}
    audits = [(one, known.get(str(Path(one.path).resolve())) if one.path else None) for one in history.audits(name)]
    sources = {one: f"/api/training/chart?{urlencode({'name': name, 'metric': one})}" for one in chosen}
    values = {
        "area": "Training", "run": summary, "optimizer": history.optimizer(name), "metrics": metrics, "chosen": chosen,
        "sources": sources,
        "scalars": f"/api/training/scalars?{asked.query(name)}", "asked": asked, "arriving": arriving(summary),
        "runs": [one.name for one in history.runs() if one.name != name], "alarms": history.kept_alarms(name)[::-1],
        "no_alarm": history.no_alarm(name), "audits": audits, "events": f"/training/events?{urlencode({'name': name})}",
    }  # fmt: skip
    return context.pages.page(request, "run.html", values)


@router.get("/training/events")
async def events(request: Request, context: Given, name: str) -> StreamingResponse:
    """Server-sent events: one whenever the run has something new."""
    await run_in_threadpool(summary_of, context, name)

    async def looks() -> AsyncIterator[bytes]:
        seen = None
        while not (context.ending.is_set() or await request.is_disconnected()):
            try:
                summary = (await run_in_threadpool(summary_of, context, name)).to_json()
            except TailwiseError as error:
                yield event("trouble", {"message": error.what})
                return
            if summary != seen:
                yield event("point", summary)
                seen = summary
            else:
                yield b": still there\n\n"
            await asyncio.sleep(_LOOK)

    return stream(looks())
