"""Role × block in one picture, for any metric."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from tailwise.core.errors import UsageError, unknown_name
from tailwise.report.charts.building import BANDS, place_axis, summary_of
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import Record, ordered, rounded
from tailwise.report.charts.view import ORDER, ChartView
from tailwise.spectrum.metrics.metric import METRICS

#: Above this many columns the numbers in the cells cannot be read.
_LABELLED = 14
_UNKNOWN = "no trusted fit"


@chart(
    "heatmap",
    title="Role × block",
    guidance=Guidance(
        "One cell per role and block (mean where a block has several, as with experts). Any metric: --metric NAME.",
        "rows that change smoothly from left to right.",
        "a cell that stands out of its row, or a column that stands out of the picture.",
        "α is coloured by its bands (trusted fits; grey where a cell has none). Any other metric is coloured along its "
        "own row, from the lowest cell to the highest: compare along a row, not down a column.",
    ),
)
def heatmap(view: ChartView) -> Any:
    """Heat map of role × block for any metric."""
    metric = _chosen(view)
    banded = metric == "alpha" and view.banded
    rows = cells_of(view.records, metric, trusted=banded)
    roles = ordered((row["role"] for row in rows), ORDER)
    x = place_axis(view, rows, ticks=14, title=view.depth.title)
    y = alt.Y("role:N", sort=roles, title=None, axis=alt.Axis(grid=False, domain=False, ticks=False, labelFontSize=12))
    cells = alt.Chart(view.data(f"cells_{metric}", rows))
    tips = [alt.Tooltip("role:N"), alt.Tooltip("place:Q", title="block"), alt.Tooltip("layers:Q"),
            alt.Tooltip("value:Q", title=metric, format=".4~g")]  # fmt: skip
    span = alt.X("left:Q", scale=x["scale"], axis=x["axis"], title=x["title"])
    color = _by_band(view) if banded else _by_row(view, metric)
    layers = [cells.mark_rect(cornerRadius=2).encode(x=span, x2="right:Q", y=y, color=color, tooltip=tips)]
    if view.depth.high - view.depth.low < _LABELLED:
        ink: Any = alt.value(view.palette["ink"])
        if not banded:
            ink = alt.condition("datum.share > 0.5", alt.value(view.palette["paper"]), ink)
        text = alt.Text("value:Q", format=".3~g")
        known = cells.transform_filter("isValid(datum.value)")  # what has none would be written as "null"
        layers.append(
            known.mark_text(fontSize=10).encode(x=alt.X("place:Q", scale=x["scale"]), y=y, text=text, color=ink)
        )
    return alt.layer(*layers).properties(width=view.width - 60, height=24 * len(roles))


def cells_of(records: Sequence[Record], metric: str, *, trusted: bool) -> list[Record]:
    """Role and place → the mean of the metric, its share of the way from the lowest cell of the role to the highest,
    and its band of α; with `trusted`, of trusted fits alone, and without a value where a cell has none."""
    found: dict[tuple[str, int], list[Record]] = {}
    for record in records:
        if record.get(metric) is not None:
            found.setdefault((record["role"], record["place"]), []).append(record)
    rows: list[Record] = []
    for (role, place), own in found.items():
        values = [one[metric] for one in own if not (trusted and one["poor"])]
        mean = rounded(sum(values) / len(values)) if values else None
        band = _UNKNOWN if mean is None else _band_of(mean)
        rows.append({"role": role, "place": place, "left": place - 0.48, "right": place + 0.48, "value": mean,
                     "layers": len(own), "band": band})  # fmt: skip
    ends: dict[str, list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            ends.setdefault(row["role"], []).append(row["value"])
    for row in rows:
        of_role = ends.get(row["role"], [0.0])
        span = max(of_role) - min(of_role)
        row["share"] = rounded((row["value"] - min(of_role)) / span if span > 0 and row["value"] is not None else 0.5)
    return rows


def _band_of(alpha: float) -> str:
    return next((label for _, high, _, label in BANDS if alpha < high), BANDS[-1][-1])


def _by_band(view: ChartView) -> alt.Color:
    labels = [*(label for *_, label in BANDS), _UNKNOWN]
    inks = [view.palette[name.replace("band.", "cell.")] for *_, name, _ in BANDS]
    scale = alt.Scale(domain=labels, range=[*inks, view.palette["grid"]])
    return alt.Color("band:N", sort=labels, scale=scale, legend=alt.Legend(title=None, orient="top", columns=3))


def _by_row(view: ChartView, metric: str) -> alt.Color:
    scale = alt.Scale(domain=[0, 1], range=[view.palette["heat.low"], view.palette["heat.high"]], clamp=True)
    ends = "datum.value == 0 ? 'lowest of the row' : 'highest'"
    legend = alt.Legend(title=metric, gradientLength=220, orient="top", values=[0, 1], labelExpr=ends)
    return alt.Color("share:Q", scale=scale, legend=legend)


def _chosen(view: ChartView) -> str:
    metric = view.metric_name or ("alpha" if view.has("alpha") else "log_spectral_norm")
    if not view.has(metric):
        known = [name for name, _ in METRICS.items() if view.has(name)]
        if metric not in METRICS:
            raise unknown_name("metric", metric, known)
        raise UsageError(f"this audit has no {metric} ({summary_of(metric)})", fix=f"choose one of {', '.join(known)}")
    return metric
