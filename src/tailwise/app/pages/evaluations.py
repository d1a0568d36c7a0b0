"""Evaluations that lie in the folders, side by side: quality against size."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, TypeVar

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from tailwise.app.chart_json import of_view
from tailwise.app.page_context import PageContext, context_of
from tailwise.app.workspace import links
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.models.evaluation.candidates import Evaluation, SameText, read_evaluation, side_by_side
from tailwise.report.evaluations.evaluation_page import in_full, told_html, views_of
from tailwise.report.evaluations.evaluation_view import EvaluationView
from tailwise.report.evaluations.quality_by_size import GUIDANCE, figure_of

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
_MOST = 200  # files that are read, the newest first
_log = logging.getLogger(__name__)
Value = TypeVar("Value")


@dataclass(frozen=True)
class PageOfEvaluations:
    """What the page shows."""

    groups: tuple[SameText, ...]
    broken: tuple[tuple[str, str], ...]  # file → why it could not be read
    files: int
    of: int


def shown(context: PageContext) -> PageOfEvaluations:
    """All evaluations by what they were scored on, kept until a file comes, goes or changes."""
    return _kept(context, "evaluations", partial(_read, context)) or PageOfEvaluations((), (), 0, 0)


def _kept(context: PageContext, what: str, make: Callable[[list[WorkspaceEntry]], Value]) -> Value | None:
    """What `make` makes of all evaluations, kept until a file comes, goes or changes; None where there is none."""
    entries = [entry for entry in context.workspace.others() if entry.kind == "evaluation"]
    if not entries:
        return None
    return context.workspace.keep(entries[0].id, (what, context.workspace.state), partial(make, entries))


def _read(context: PageContext, entries: list[WorkspaceEntry]) -> PageOfEvaluations:
    found: dict[str, Evaluation] = {}
    broken = []
    for entry in entries[:_MOST]:
        path = entry.path
        try:
            found[entry.title] = context.workspace.keep(entry.id, "evaluation", partial(read_evaluation, path))
        except TailwiseError as error:
            broken.append((entry.title, error.what))
        except Exception:  # whatever one file holds, the page shows the others
            _log.warning("%s cannot be read", path, exc_info=True)
            broken.append((entry.title, "it cannot be read"))
    return PageOfEvaluations(side_by_side(found), tuple(broken), min(len(entries), _MOST), len(entries))


@router.get("/evaluations")
def evaluations(request: Request, context: Given) -> HTMLResponse:
    """Every text with its models."""
    found = shown(context)
    values = {"area": "Models", "found": found, "texts": _kept(context, "texts", lambda _: _texts(found)) or [],
              "guidance": GUIDANCE}  # fmt: skip
    return context.pages.page(request, "evaluations.html", values)


def _texts(found: PageOfEvaluations) -> list[dict[str, Any]]:
    return [_text(index, one) for index, one in enumerate(found.groups)]


def _text(index: int, group: SameText) -> dict[str, Any]:
    # The functions of the report escape what they are given.
    words, table = told_html(group)
    charts = [
        {
            "title": figure_of(view).title,
            "source": f"/api{links.evaluation_chart(index, view.measure.key, view.size.key)}",
        }
        for view in views_of(group)
    ]
    return {"title": group.text, "words": Markup(words), "table": Markup(table), "full": Markup(in_full(group)),  # noqa: S704
            "charts": charts}  # fmt: skip


def chart_of(context: PageContext, text: int, measure: str, size: str) -> bytes:
    """The Vega-Lite spec of one chart. `UsageError` where there is none of that name."""
    groups = shown(context).groups
    views: list[EvaluationView] = views_of(groups[text]) if 0 <= text < len(groups) else []
    view = next((one for one in views if (one.measure.key, one.size.key) == (measure, size)), None)
    if view is None:
        raise UsageError("there is no such chart of evaluations", where=f"text {text}, {measure}, {size}",
                         fix="open it from the page of evaluations")  # fmt: skip
    return of_view(figure_of(view), view)
