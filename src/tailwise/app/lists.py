"""The list of models: which are shown, and in what order."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import BaseModel, Field

from tailwise.app.others import others
from tailwise.app.overviews import Overview
from tailwise.app.page_context import PageContext
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.judging.diagnosis.finding import SEVERITIES

_SIZE = 100
_BUDGET = 0.25  # seconds of reading audits before the list is shown; the rest of the lines come by themselves
_LONGER = 5.0  # where the list cannot be made without reading them


_WORDS = ("healthy", "no verdict", "needs a look", "unhealthy")  # of health, the worst last


class Listing(BaseModel):
    """What is asked of the list."""

    q: str = Field("", max_length=200)
    tag: str = Field("", max_length=60)
    # In the words of health; `error` and the like, the highest severity, are in links that were sent before.
    verdict: Literal["", "healthy", "needs a look", "unhealthy", "no verdict", "error", "warning", "info", "good"] = ""
    sort: Literal["changed", "title", "model", "layers", "alpha", "share_2_4", "worst"] = "changed"
    down: bool = True
    page: int = Field(1, ge=1, le=100_000)
    state: str = Field("", max_length=40)  # of the list that asks whether anything is new


def listed(context: PageContext, asked: Listing) -> dict[str, Any]:
    """Lines of one page, each with its overview or the promise of one."""
    tags = context.tags.all()
    every = context.workspace.entries("audit")
    entries = [entry for entry in every if _fits(context, entry, asked, tags)]
    ends = time.monotonic() + (_LONGER if asked.verdict else _BUDGET)
    lines = [(entry, _overview(context, entry, ends)) for entry in entries]
    unread = sum(one is None for _, one in lines)
    if asked.verdict:
        wanted = None if asked.verdict == "good" else asked.verdict
        lines = [(entry, one) for entry, one in lines
                 if one is not None and not one.trouble and wanted in (one.health, one.worst)]  # fmt: skip
    lines = _sorted(lines, asked)
    pages = max(1, -(-len(lines) // _SIZE))
    page = min(asked.page, pages)
    known = {str(entry.path) for entry in every}  # the state may be shared with a server of other folders
    every_tag = sorted({tag for path, labels in tags.items() if path in known for tag in labels})
    return {"lines": lines[(page - 1) * _SIZE : page * _SIZE], "total": len(lines), "page": page, "pages": pages,
            "asked": asked, "tags": tags, "every_tag": every_tag, "roots": context.workspace.roots,
            "cut": context.workspace.cut, "unread": unread, "state": context.workspace.state,
            "example": context.workspace.example,
            "others": [] if asked.tag or asked.verdict else others(context.workspace, asked.q)}  # fmt: skip


def _fits(context: PageContext, entry: WorkspaceEntry, asked: Listing, tags: dict[str, tuple[str, ...]]) -> bool:
    own = tags.get(str(entry.path), ())
    if asked.tag and asked.tag not in own:
        return False
    overview = context.overviews.ready(entry)
    text = " ".join((entry.title, overview.model if overview is not None else "", *own)).lower()
    return all(word in text for word in asked.q.lower().split())


def _overview(context: PageContext, entry: WorkspaceEntry, ends: float) -> Overview | None:
    overview = context.overviews.ready(entry)
    if overview is None and time.monotonic() < ends:
        return context.overviews.of(entry)
    return overview


def _sorted(
    lines: Sequence[tuple[WorkspaceEntry, Overview | None]], asked: Listing
) -> list[tuple[WorkspaceEntry, Overview | None]]:
    def value(line: tuple[WorkspaceEntry, Overview | None]) -> Any:
        entry, one = line
        if asked.sort in ("changed", "title"):
            return getattr(entry, asked.sort)
        if one is None:
            return None
        if asked.sort == "worst":
            worst = SEVERITIES.index(one.worst) if one.worst in SEVERITIES else -1
            return (_WORDS.index(one.health) if one.health in _WORDS else -1, worst, one.errors, one.warnings)
        return getattr(one, asked.sort)

    there = [line for line in lines if value(line) is not None]
    absent = [line for line in lines if value(line) is None]
    return [*sorted(there, key=value, reverse=asked.down), *absent]
