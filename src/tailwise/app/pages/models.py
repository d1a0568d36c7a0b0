"""Models: all audits, one audit, its layers and charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from html import escape
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import HTMLResponse, RedirectResponse

from tailwise.app.bases import bases_of
from tailwise.app.chart_json import FAMILIES, HEATS, ChartPlace, chart_named, families, needs, view_of
from tailwise.app.layer_tables import Columns, chosen_columns, exported
from tailwise.app.lists import Listing, listed
from tailwise.app.page_context import PageContext, context_of
from tailwise.app.workspace import layers as table
from tailwise.app.workspace import links
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import bulk_words, doubt, estimator_of, mean_alpha_words
from tailwise.core.errors import UsageError
from tailwise.judging.diagnosis.finding import Diagnosis
from tailwise.judging.diagnosis.verdict import standings
from tailwise.report.charts.chart import charts_of
from tailwise.report.layer_map import layer_map
from tailwise.spectrum.metrics.metric import METRICS

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]


@router.get("/")
def home() -> RedirectResponse:
    """The models."""
    return RedirectResponse(links.models(), 303)


@router.get("/models")
def models(request: Request, context: Given, listing: Annotated[Listing, Query()]) -> Response:
    """All audits: searched, filtered by tag, sorted; and what else lies there. Nothing where nothing is new."""
    if listing.state and listing.state == context.workspace.state:
        return Response(status_code=204)
    return context.pages.page(request, "models.html", {"area": "Models", **listed(context, listing)})


@router.get("/models/{audit}/row")
def row(request: Request, context: Given, audit: str) -> HTMLResponse:
    """One line of the list, for an audit that had to be read first."""
    entry = context.workspace.entry(audit, "audit")
    values = {"one": context.overviews.of(entry), "tags": context.tags.of(entry)}
    return context.pages.page(request, "row.html", values)


@router.get("/models/{audit}")
def model(request: Request, context: Given, audit: str, family: str = "alpha") -> HTMLResponse:
    """One audit: facts, findings, charts of one family."""
    known = families()
    if family not in known:
        family = "alpha"
    entry, measured = context.workspace.entry(audit, "audit"), context.workspace.audit(audit)
    diagnosis = context.workspace.diagnosis(audit)
    values = {
        "map": context.workspace.keep(audit, "map", lambda: layer_map(measured, diagnosis, _to(audit))),
        "area": "Models", "entry": entry, "audit": measured, "diagnosis": diagnosis, "tags": context.tags.of(entry),
        "overview": context.overviews.of(entry), "families": {name: FAMILIES.get(name, name) for name in known},
        "family": family, "places": _places(context, audit, family) if len(measured) else [],
        "of_bulk": bulk_words(measured) if family in ("alpha", "heat") else "",
        "numbers": measured.summary(), "mean_alpha": mean_alpha_words(measured), "bases": bases_of(context, audit),
    }  # fmt: skip
    return context.pages.page(request, "model.html", values)


def _to(audit: str) -> Callable[[Sequence[LayerRow]], str]:
    """Links of the map: to a layer, or to the table of those that share a cell."""

    def attributes(rows: Sequence[LayerRow]) -> str:
        first = rows[0]
        alike = f"role={first.role}" + ("" if first.block is None else f" block={first.block}")
        href = links.layer(audit, first.name) if len(rows) == 1 else links.layers(audit, q=alike)
        return f'href="{escape(href, quote=True)}"'

    return attributes


def _places(context: PageContext, audit: str, family: str) -> list[ChartPlace]:
    view = view_of(context.workspace, audit)
    places = []
    for chart in families()[family]:
        metrics = [name for name in HEATS if view.has(name)] if chart.name == "heatmap" else [None]
        for metric in metrics:
            title = chart.title if metric is None else f"{chart.title}: {metric}"
            places.append(_place(audit, chart.name, metric, title, needs(chart, view)))
    return places


def _place(audit: str, name: str, metric: str | None, title: str, missing: str) -> ChartPlace:
    link = links.chart(audit, name, metric)
    return ChartPlace(chart_named(name, "audit"), f"/api{link}", title, link, missing)


@router.get("/models/{audit}/charts/{name}")
def chart(request: Request, context: Given, audit: str, name: str, metric: str | None = None) -> HTMLResponse:
    """One chart on a page of its own."""
    chosen, view = chart_named(name, "audit"), view_of(context.workspace, audit)
    title = chosen.title if metric is None else f"{chosen.title}: {metric}"
    charts = charts_of("audit")
    at = next(index for index, one in enumerate(charts) if one.name == name)
    around = (charts[at - 1], charts[(at + 1) % len(charts)])
    values = {
        "area": "Models", "entry": context.workspace.entry(audit), "audit": context.workspace.audit(audit),
        "place": _place(audit, name, metric, title, needs(chosen, view)), "charts": charts,
        "before": links.chart(audit, around[0].name), "after": links.chart(audit, around[1].name),
        "metrics": [one for one in HEATS if view.has(one)] if name == "heatmap" else [], "metric": metric or "alpha",
    }  # fmt: skip
    return context.pages.page(request, "chart.html", values)


def layer_rows(context: PageContext, audit: str) -> list[dict[str, Any]]:
    """All rows of an audit, kept."""
    workspace = context.workspace
    return workspace.keep(audit, "rows", lambda: table.records(workspace.audit(audit), workspace.diagnosis(audit)))


@router.get("/models/{audit}/layers")
def layers(request: Request, context: Given, audit: str, asked: Annotated[Columns, Query()]) -> Response:
    """The table of all layers, on a page or as a file."""
    rows = layer_rows(context, audit)
    if asked.export:
        return exported(rows, asked, context.workspace.entry(audit).title)
    message = ""
    try:
        page = table.select(rows, asked.query())
    except UsageError as error:  # a half-typed condition must not take the table away
        message, page = str(error), table.select(rows, asked.plain().query())
    values = {
        "area": "Models", "entry": context.workspace.entry(audit), "audit": context.workspace.audit(audit),
        "found": page, "asked": asked, "columns": chosen_columns(rows, asked), "every": table.columns(rows),
        "message": message,
        "summaries": {name: METRICS[name].summary for name in table.columns(rows) if name in METRICS},
        "words": table.WORDS,
    }  # fmt: skip
    return context.pages.page(request, "layers.html", values)


@router.get("/models/{audit}/layer")
def layer(request: Request, context: Given, audit: str, name: str) -> HTMLResponse:
    """One matrix: charts, numbers and what they mean, findings."""
    measured = context.workspace.audit(audit)
    row = next((row for row in measured.rows if row.name in (name, name.removesuffix(".weight"))), None)
    if row is None:
        _ = measured[name]  # raises with near names
        raise AssertionError
    names = [one.name for one in measured.rows if one.measured or not row.measured]
    at = names.index(row.name)
    shown = next(one for one in table.records(measured) if one["name"] == row.name)
    charts = [one for one in charts_of("layer") if one.name != "layer"] if row.measured else []
    source = f"/api{links.layer(audit, row.name)}".replace("/layer?", "/layer/charts/{}?")
    diagnosis: Diagnosis = context.workspace.diagnosis(audit)
    values = {
        "area": "Models", "entry": context.workspace.entry(audit), "audit": measured, "row": row,
        "places": [ChartPlace(one, source.replace("{}", one.name), one.title) for one in charts],
        "doubt": doubt(row, estimator_of(measured)) if "alpha" in row.metrics else "",
        "findings": diagnosis.of(row.name), "metrics": METRICS, "shown": shown,
        "standings": standings(measured, row.name) if row.measured else (),
        "before": names[at - 1] if at else None, "after": names[at + 1] if at + 1 < len(names) else None,
    }  # fmt: skip
    return context.pages.page(request, "layer.html", values)
