"""Role × block in one picture, for any metric."""

from __future__ import annotations

from typing import Any

import altair as alt

from tailwise.core.errors import UsageError, unknown_name
from tailwise.report.charts.building import place_axis, summary_of
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import ordered
from tailwise.report.charts.view import ORDER, ChartView
from tailwise.spectrum.metrics.metric import METRICS

#: Above this many columns the numbers in the cells cannot be read.
_LABELLED = 14


@chart(
    "heatmap",
    title="Role × block",
    guidance=Guidance(
        "One cell per role and block (mean where a block has several, as with experts). Any metric: --metric NAME.",
        "rows that change smoothly from left to right.",
        "a cell that stands out of its row, or a column that stands out of the picture.",
        "Rows differ by role and shape: compare along a row, not down a column.",
    ),
)
def heatmap(view: ChartView) -> Any:
    """Heat map of role × block for any metric."""
    metric = _chosen(view)
    records = [record for record in view.records if record.get(metric) is not None]
    roles = ordered((record["role"] for record in records), ORDER)
    x = place_axis(view, records, ticks=14, title=view.depth.title)
    y = alt.Y("role:N", sort=roles, title=None, axis=alt.Axis(grid=False, domain=False, ticks=False, labelFontSize=12))
    values = [record[metric] for record in records]
    extreme = sorted(values)[int(0.98 * (len(values) - 1))]
    domain = [min(values), extreme if extreme > min(values) else max(values) + 1e-9]
    scale = alt.Scale(domain=domain, range=[view.palette["heat.low"], view.palette["heat.high"]], clamp=True)
    color = alt.Color(
        "value:Q", scale=scale, legend=alt.Legend(title=metric, gradientLength=220, orient="top", format=".3~g")
    )
    cells = (
        alt.Chart(view.layers)
        .transform_filter(f"isValid(datum['{metric}'])")
        .transform_aggregate(value=f"mean({metric})", layers="count()", groupby=["place", "role"])
        .transform_calculate(left="datum.place - 0.48", right="datum.place + 0.48")
    )
    tips = [alt.Tooltip("role:N"), alt.Tooltip("place:Q", title="block"), alt.Tooltip("layers:Q"),
            alt.Tooltip("value:Q", title=metric, format=".4~g")]  # fmt: skip
    span = alt.X("left:Q", scale=x["scale"], axis=x["axis"], title=x["title"])
    layers = [cells.mark_rect(cornerRadius=2).encode(x=span, x2="right:Q", y=y, color=color, tooltip=tips)]
    if view.depth.high - view.depth.low < _LABELLED:
        middle = alt.condition(f"datum.value > {sum(domain) / 2:.6g}", alt.value(view.palette["paper"]),
                               alt.value(view.palette["ink"]))  # fmt: skip
        text = alt.Text("value:Q", format=".3~g")
        layers.append(
            cells.mark_text(fontSize=10).encode(x=alt.X("place:Q", scale=x["scale"]), y=y, text=text, color=middle)
        )
    return alt.layer(*layers).properties(width=view.width - 60, height=24 * len(roles))


def _chosen(view: ChartView) -> str:
    metric = view.metric_name or ("alpha" if view.has("alpha") else "log_spectral_norm")
    if not view.has(metric):
        known = [name for name, _ in METRICS.items() if view.has(name)]
        if metric not in METRICS:
            raise unknown_name("metric", metric, known)
        raise UsageError(f"this audit has no {metric} ({summary_of(metric)})", fix=f"choose one of {', '.join(known)}")
    return metric
