"""Comparisons and precision studies that lie in a folder, each on a page of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import HTMLResponse
from markupsafe import Markup

from tailwise.app.page_context import PageContext, context_of
from tailwise.app.workspace import links
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.core.errors import UsageError
from tailwise.judging.compare.comparison import Comparison
from tailwise.judging.compare.comparison_files import read_comparisons
from tailwise.judging.compare.conclusion import conclusion
from tailwise.report.comparison_page import grids, structure

if TYPE_CHECKING:
    from tailwise.audits.precision.study import PrecisionStudy

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
_ROWS = 200


@router.get("/files/{name}")
def file(request: Request, context: Given, name: str) -> HTMLResponse:
    """What one file says, in words and tables."""
    entry = context.workspace.entry(name)
    values: dict[str, Any] = {"area": "Models", "entry": entry}
    if entry.kind == "comparison":
        found = context.workspace.keep(name, "comparison file", lambda: read_comparisons(entry.path))
        parts = [_compared(one) for one in found]
        return context.pages.page(request, "file.html", {**values, "parts_": parts, "report": ""})
    from tailwise.report.precision.page import in_words

    study = _study(context, entry)
    sections = context.workspace.keep(name, "in words", lambda: in_words(study))
    parts = [{"title": title, "lead": "", "html": Markup(text)} for _, title, text in sections if text]  # noqa: S704
    return context.pages.page(request, "file.html", {**values, "parts_": parts, "report": f"{links.file(name)}/report"})


@router.get("/files/{name}/report")
def whole(context: Given, name: str) -> Response:
    """The report of a precision study with its charts, as a file: the app's own policy would not show it."""
    from tailwise.report.precision.page import report

    entry = context.workspace.entry(name)
    text = report(_study(context, entry))
    headers = {"content-disposition": f'attachment; filename="{entry.id}.html"'}
    return Response(text.encode(errors="replace"), media_type="text/html; charset=utf-8", headers=headers)


def _study(context: PageContext, entry: WorkspaceEntry) -> PrecisionStudy:
    from tailwise.audits.precision.study import PrecisionStudy

    if entry.kind != "precision":
        raise UsageError("has no page of its own", where=entry.title, fix="open it from the list of models")
    return context.workspace.keep(entry.id, "study", lambda: PrecisionStudy.load(entry.path))


def _compared(one: Comparison) -> dict[str, Any]:
    # The functions of the report escape what they are given.
    tables = "".join(f"<h3>{Markup.escape(grid.title)}</h3>{grid.to_html()}<p class='quiet'>"
                     f"{Markup.escape(grid.below)}</p>" for grid in grids(one, _ROWS))  # fmt: skip
    said = "".join(f"<li>{Markup.escape(line)}</li>" for line in (*structure(one), *one.notes))
    html = tables + (f"<ul>{said}</ul>" if said else "")
    return {"title": f"{one.after} against {one.before}", "lead": conclusion(one), "html": Markup(html)}  # noqa: S704
