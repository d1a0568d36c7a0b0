"""Compare: audits side by side, and one against its base."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlencode

from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import HTMLResponse
from pydantic import BaseModel, Field

from tailwise.app.chart_json import ChartPlace, needs
from tailwise.app.page_context import PageContext, context_of
from tailwise.audits.audit import Audit
from tailwise.core.errors import UsageError
from tailwise.judging.compare.comparison import Comparison
from tailwise.judging.compare.conclusion import conclusion
from tailwise.judging.compare.summary import SUMMARIES, model_numbers
from tailwise.report.charts.chart import Scope, charts_of
from tailwise.report.charts.view import ChartView, short_names

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
MOST = 8
_SIZE = 100


@router.get("/compare")
def compare(request: Request, context: Given, model: Annotated[list[str] | None, Query()] = None) -> HTMLResponse:
    """Several audits: charts by model, and their numbers in one table."""
    chosen = list(dict.fromkeys(model or ()))
    if len(chosen) > MOST:
        raise UsageError(f"{len(chosen)} models are too many to tell apart", fix=f"choose at most {MOST}")
    audits = [context.workspace.audit(name) for name in chosen]
    query = urlencode([("model", name) for name in chosen])
    ready = len(audits) > 1 and all(len(audit) for audit in audits)
    places = _places("several", f"/api/compare/charts/{{}}?{query}", [audits]) if ready else []
    pair = ready and len(chosen) == 2
    values = {
        "conclusion": conclusion(context.workspace.comparison(chosen[0], chosen[1])) if pair else "",
        "area": "Compare", "chosen": chosen, "entries": context.workspace.entries("audit"),
        "names": short_names(audits) if audits else [], "numbers": [model_numbers(audit) for audit in audits],
        "summaries": SUMMARIES, "places": places, "ready": ready, "most": MOST,
    }  # fmt: skip
    return context.pages.page(request, "compare.html", values)


class Pair(BaseModel):
    """Two audits, and which of their layers are listed."""

    model: str
    base: str
    metric: str = "alpha"
    only: Literal["", "sure"] = ""
    page: int = Field(1, ge=1, le=100_000)


@router.get("/base")
def base(request: Request, context: Given, asked: Annotated[Pair, Query()]) -> HTMLResponse:
    """An audit against its base: charts of what changed, roles that moved together, and every layer."""
    model, base, metric, only = asked.model, asked.base, asked.metric, asked.only
    comparison = context.workspace.comparison(base, model)
    query = urlencode({"model": model, "base": base})
    audits = [context.workspace.audit(base), context.workspace.audit(model)]
    drawn = bool(comparison.layers) and not comparison.identical
    places = _places("base", f"/api/base/charts/{{}}?{query}", [[one] for one in audits]) if drawn else []
    values = {
        "area": "Compare", "model": model, "base": base, "found": comparison,
        "names": [context.workspace.entry(one, "audit").title for one in (base, model)],
        "places": places, "metric": metric, "only": only,
        "conclusion": conclusion(comparison), "fits": len(comparison.layers),
        "adapter": any("peft" in audit.provenance.format for audit in audits),
        **_lines(comparison, metric, only, asked.page),
    }  # fmt: skip
    return context.pages.page(request, "against.html", values)


def _places(scope: Scope, source: str, needed: Sequence[Sequence[Audit]]) -> list[ChartPlace]:
    """Every chart of a scope; what some of the audits lack the numbers for comes last, and says what it needs."""
    views = [ChartView(tuple(audits)) for audits in needed]
    places = []
    for one in charts_of(scope):
        lacking = next((said for view in views if (said := needs(one, view))), "")
        places.append(ChartPlace(one, source.format(one.name), one.title, missing=lacking))
    return sorted(places, key=lambda place: bool(place.missing))


def _lines(comparison: Comparison, metric: str, only: str, page: int) -> dict[str, Any]:
    """Layers by the size of their change, the surest first."""
    metrics = list(dict.fromkeys(name for layer in comparison.layers for name in layer.deltas))
    if metrics and metric not in metrics:
        raise UsageError(f"the two audits have no {metric}", fix=f"choose one of {', '.join(metrics)}")
    lines = [layer for layer in comparison.layers if not layer.identical and metric in layer.deltas]
    if only == "sure":
        lines = [layer for layer in lines if layer.deltas[metric].significant]
    lines.sort(key=lambda layer: -abs(layer.deltas[metric].z or layer.deltas[metric].change or 0.0))
    pages = max(1, -(-len(lines) // _SIZE))
    page = max(1, min(page, pages))
    return {"lines": lines[(page - 1) * _SIZE : page * _SIZE], "total": len(lines), "page": page, "pages": pages,
            "metrics": metrics}  # fmt: skip
