"""Vega-Lite specs of the charts, made once for a file and kept."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import UsageError
from tailwise.report.charts.chart import CHARTS, Chart, charts_of, remedy
from tailwise.report.charts.view import ChartView
from tailwise.report.render import Spec, spec_of
from tailwise.report.theme import THEMES, TOKENS, config

#: Headings of the chart families; a family of a third party has its own name.
FAMILIES = {
    "alpha": "Tails",
    "randomized": "Against random",
    "balance": "Balance",
    "depth": "Scale and rank",
    "heat": "Role × block",
}
#: Metrics that the heat map is offered for.
HEATS = ("alpha", "alpha_hill_z", "log_spectral_norm", "stable_rank", "effective_rank", "singular_entropy_normalized",
         "num_traps", "one_minus_rd", "detX_delta")  # fmt: skip
_DRAWING = threading.Lock()


@dataclass(frozen=True)
class ChartPlace:
    """A chart on a page: what it is called, where its data are, and why it cannot be drawn, if so."""

    chart: Chart
    source: str
    title: str
    link: str = ""
    missing: str = ""


def themes() -> bytes:
    """Colours by meaning for both themes, and the config of all charts."""
    return json.dumps({**THEMES, "config": config(TOKENS)}).encode()


def families() -> dict[str, list[Chart]]:
    """Family → charts of one audit."""
    charts: dict[str, list[Chart]] = {}
    for chart in charts_of("audit"):
        charts.setdefault(chart.family, []).append(chart)
    return charts


def chart_named(name: str, scope: str) -> Chart:
    """The chart of that name. `UsageError` where it is none, or one of something else."""
    chart = CHARTS[name]
    if chart.scope != scope:
        raise UsageError(f"the chart {name} is one of {chart.scope}, not of {scope}")
    return chart


def view_of(workspace: Workspace, audit: str) -> ChartView:
    """The view of one audit, with records that all its charts share."""
    return workspace.keep(audit, "view", lambda: ChartView((workspace.audit(audit),), palette=TOKENS))


def needs(chart: Chart, view: ChartView) -> str:
    """What an audit would need for a chart; empty where it has all."""
    absent = chart.missing(view)
    return f"needs {', '.join(absent)}: {remedy(absent)}" if absent else ""


def of_audit(workspace: Workspace, audit: str, name: str, metric: str | None) -> bytes:
    """The spec of a chart of one audit, as JSON."""
    chart = chart_named(name, "audit")
    if metric is not None and name != "heatmap":
        metric = None
    return workspace.keep(
        audit,
        ("spec", name, metric),
        lambda: _spec(chart, _of_metric(view_of(workspace, audit), metric)),
    )


def _of_metric(view: ChartView, metric: str | None) -> ChartView:
    if metric is not None and not view.has(metric):
        raise UsageError(f"this audit has no {metric}", where=view.audit.model)
    fresh = view.of_metric(metric)
    fresh.datasets = {}  # threads draw at once, and each leaves its data there
    return fresh


def of_layer(workspace: Workspace, audit: str, layer: str, name: str) -> bytes:
    """The spec of a chart of one layer, as JSON."""
    chart = chart_named(name, "layer")
    measured = workspace.audit(audit)
    key = measured[layer].row.name
    return workspace.keep(
        audit, ("spec", name, key), lambda: _spec(chart, ChartView((measured,), palette=TOKENS, layer_name=key))
    )


def of_several(workspace: Workspace, audits: Sequence[str], name: str) -> bytes:
    """The spec of a chart of several audits, as JSON."""
    chart = chart_named(name, "several")
    view = ChartView(tuple(workspace.audit(audit) for audit in audits), palette=TOKENS)
    return _spec(chart, view)


def against_base(workspace: Workspace, audit: str, base: str, name: str) -> bytes:
    """The spec of a chart of an audit and its base, as JSON."""
    chart = chart_named(name, "base")
    view = ChartView((workspace.audit(audit),), palette=TOKENS, base=workspace.audit(base))
    view.__dict__["comparison"] = workspace.comparison(base, audit)
    return _spec(chart, view)


def of_view(chart: Chart, view: ChartView) -> bytes:
    """The spec of a chart of whatever a view holds, as JSON."""
    return _spec(chart, view)


def _spec(chart: Chart, view: ChartView) -> bytes:
    # Altair counts the names of its views for all threads together, and two at once may get the same.
    with _DRAWING:
        return _text(spec_of(chart, view, titled=False))


def encoded(draw: Callable[[], Any], *, titled: bool = False) -> bytes:
    """An Altair chart as JSON, with its datasets; without its title, unless it says what the page has not."""
    with _DRAWING:
        spec = draw().to_dict(validate=False)
    if not titled:
        spec.pop("title", None)
    spec.pop("config", None)  # the page has its own
    spec.setdefault("datasets", {})
    return _text(spec)


def _text(spec: Spec) -> bytes:
    return json.dumps(spec, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()
