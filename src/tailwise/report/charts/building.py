"""Pieces that charts are made of: bands, points, small charts along depth, histograms, scatters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from tailwise.report.charts.data import Bins, bins_of, stacked
from tailwise.report.charts.view import ChartView
from tailwise.report.theme import SHAPES, group_of, role_color
from tailwise.spectrum.metrics.metric import METRICS

#: (low, high, colour, label) of the HT-SR bands of alpha, DEFINITIONS §4.
BANDS = (
    (1.0, 2.0, "band.over", "< 2 over-trained"),
    (2.0, 4.0, "band.good", "2–4 well-fit"),
    (4.0, 6.0, "band.weak", "4–6 weakly heavy-tailed"),
    (6.0, 1000.0, "band.under", "> 6 under-trained"),
)
ALPHA_TICKS = [1, 1.5, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100]
ALPHA = "α (log scale)"
#: An axis of α that must show the band below 2 begins here.
BELOW_TWO = 1.8
#: More layers than this are drawn as a cloud with the mean on top.
CROWD = 1500
_FACTS = (("name", "layer"), ("role", "role"), ("block", "block"), ("shape", "shape"))


@dataclass(frozen=True)
class Axis:
    """What one axis shows."""

    metric: str
    title: str
    log: bool = False
    zero: bool = False
    whole: bool = False  # a count
    line: float | None = None  # a value worth a line: the balance point, no change

    def scale(self, values: Sequence[float], pad: float = 0.04) -> alt.Scale:
        """Around `values`, with a little air."""
        shown = [*values, *([self.line] if self.line is not None else []), *([0.0] if self.zero else [])]
        low, high = min(shown), max(shown)
        if self.log:
            return alt.Scale(type="log", domain=[max(low / 1.08, 1.01), high * 1.08], nice=False, clamp=True)
        air = pad * (high - low) or 0.5
        return alt.Scale(domain=[low - air, high + air], nice=False, zero=False, clamp=True)

    def axis(self, scale: alt.Scale, *, wide: bool = True) -> alt.Axis:
        """Ticks where a reader of alpha looks for them."""
        if not self.log:
            return alt.Axis(tickCount=5)
        low, high = _domain(scale)
        inside = [tick for tick in (ALPHA_TICKS if wide else ALPHA_TICKS[::2]) if low <= tick <= high]
        return alt.Axis(values=inside, format="~g", labelOverlap=False)


def tooltip(view: ChartView, *metrics: str) -> list[alt.Tooltip]:
    """Name, role, block, shape, and the numbers that are there."""
    facts = [("model", "model"), *_FACTS] if len(view.audits) > 1 else list(_FACTS)
    shown = dict.fromkeys((*metrics, "alpha", "alpha_sigma", "ks_distance"))
    numbers = [alt.Tooltip(f"{name}:Q", title=name, format=".4~g") for name in shown if view.has(name)]
    return [*(alt.Tooltip(f"{key}:N", title=title) for key, title in facts), *numbers]


def role_encodings(view: ChartView, *, legend: bool = True, only: Sequence[str] | None = None) -> dict[str, Any]:
    """Colour and shape by role, with one legend for both."""
    roles = view.roles
    look: dict[str, Any] = {"title": None, "symbolOpacity": 1, "columns": max(2, view.width // 105)}
    extra = {"values": list(only)} if only else {}
    shown = look | extra if legend else None
    colors = alt.Scale(domain=roles, range=[role_color(role, view.palette) for role in roles])
    shapes = alt.Scale(domain=roles, range=[SHAPES[group_of(role)] for role in roles])
    return {
        "color": alt.Color("role:N", scale=colors, legend=shown, sort=roles),
        "shape": alt.Shape("role:N", scale=shapes, legend=shown, sort=roles),
    }


def points(source: alt.Chart, view: ChartView, *, size: int = 46, **encodings: Any) -> list[alt.Chart]:
    """Layers as points: poor fits hollow; small and pale where there are thousands."""
    crowd = len(view.records) > CROWD
    size, opacity = (10, 0.35) if crowd else (size, 0.9)
    good = source.transform_filter("!datum.poor").mark_point(filled=True, size=size, opacity=opacity)
    poor = source.transform_filter("datum.poor").mark_point(
        filled=False, size=size, strokeWidth=0.7 if crowd else 1.3, opacity=opacity
    )
    return [good.encode(**encodings), poor.encode(**encodings)]


def bands(view: ChartView, channel: str, scale: alt.Scale) -> list[alt.Chart]:
    """The HT-SR bands as light rectangles across `channel` ("x" or "y"); none for another estimator than `ks`."""
    if not view.banded:
        return []
    low, high = _domain(scale)
    rows = [
        {"from": max(start, low), "to": min(stop, high), "band": label}
        for start, stop, _, label in BANDS
        if start < high and stop > low
    ]
    labels, colors = [row[3] for row in BANDS], [view.palette[row[2]] for row in BANDS]
    look = {"symbolType": "square", "orient": "top", "symbolSize": 130, "symbolOpacity": 1}
    shown = {"title": None, **look, "values": [row["band"] for row in rows], "columns": max(1, view.width // 160)}
    fill = alt.Fill("band:N", sort=labels, legend=shown, scale=alt.Scale(domain=labels, range=colors))
    make = alt.X if channel == "x" else alt.Y
    return [
        alt.Chart(view.data("bands", rows))
        .mark_rect(opacity=1)
        .encode(**{channel: make("from:Q", scale=scale), f"{channel}2": "to:Q"}, fill=fill)
    ]


def _domain(scale: alt.Scale) -> tuple[float, float]:
    low, high = scale.to_dict()["domain"]
    return float(low), float(high)


def rule(
    view: ChartView, channel: str, value: float, *, color: str = "rule", dash: Sequence[int] = (5, 4)
) -> alt.Chart:
    """A line at a value worth knowing."""
    mark = alt.Chart(view.data("once", [{}])).mark_rule(
        color=view.palette[color], strokeDash=list(dash), strokeWidth=1.3
    )
    line: alt.Chart = mark.encode(**{channel: alt.datum(value)})
    return line


def place_axis(view: ChartView, metric_records: Sequence[Any], *, ticks: int, title: str | None = None) -> alt.X:
    """Depth: blocks, with "in" and "out" for what stands before and after them."""
    depth = view.depth
    used = [record["place"] for record in metric_records]
    low = depth.low - (1 if depth.inputs and min(used) < depth.low else 0)
    high = depth.high + (1 if depth.outputs and max(used) > depth.high else 0)
    step = max(1, -(-(depth.high - depth.low) // ticks))
    values = [*range(depth.low, depth.high + 1, step)]
    if low < depth.low:
        values.insert(0, low)
    if high > depth.high:
        values.append(high)
    label = f"datum.value < {depth.low} ? 'in' : datum.value > {depth.high} ? 'out' : format(datum.value, 'd')"
    return alt.X(
        "place:Q",
        title=title,
        scale=alt.Scale(domain=[low - 0.5, high + 0.5], nice=False),
        axis=alt.Axis(values=values, grid=False, labelExpr=label, labelOverlap="greedy"),
    )


def histogram(
    view: ChartView, x: Axis, bins: Bins, *, banded: bool = False, hollow: bool = True, marks: Sequence[alt.Chart] = ()
) -> Any:
    """Layers per bin, stacked by role; poor fits of alpha hollow on top, unless they are no matter here."""
    records = view.records if hollow else [{**record, "poor": False} for record in view.records]
    rows = stacked(records, x.metric, bins, view.roles)
    low, high = float(bins.edges[0]), float(bins.edges[-1])
    if x.line is not None:  # a line beyond the axis would be drawn beyond the picture
        low, high = min(low, x.line), max(high, 1.02 * x.line)
    scale = alt.Scale(domain=[low, high], nice=False, zero=False)
    more = f" ({bins.beyond} more in the last bar)" if bins.beyond else ""
    axis = {"grid": False, "tickCount": 8, **({"tickMinStep": 1} if x.whole else {})}
    across = alt.X("low:Q", scale=scale, title=x.title + more, axis=axis)
    up = alt.Y("from:Q", title="layers", scale=alt.Scale(domainMin=0), axis=alt.Axis(tickMinStep=1, tickCount=5))
    source = alt.Chart(view.data("bars", rows))
    tips = [alt.Tooltip("role:N"), alt.Tooltip("layers:Q"), alt.Tooltip("low:Q", title="from"),
            alt.Tooltip("high:Q", title="to")]  # fmt: skip
    encodings = {"x": across, "x2": "high:Q", "y": up, "y2": "to:Q", "tooltip": tips}
    color = role_encodings(view)["color"]
    solid = source.transform_filter("!datum.poor").mark_bar(opacity=0.92, stroke=view.palette["paper"], strokeWidth=0.6)
    unfilled = source.transform_filter("datum.poor").mark_bar(
        fillOpacity=0.0, fill=view.palette["paper"], stroke=view.palette["muted"], strokeWidth=1.1
    )
    layers = [
        *(bands(view, "x", scale) if banded else []),
        solid.encode(**encodings, color=color),
        unfilled.encode(**encodings),
        *marks,
        *([rule(view, "x", x.line)] if x.line is not None else []),
    ]
    return alt.layer(*layers).properties(width=view.width, height=230)


def metric_histogram(view: ChartView, x: Axis, **options: Any) -> Any:
    """A histogram with bins at round numbers over the values of the metric."""
    return histogram(view, x, bins_of(view.values(x.metric), **options))


def scatter(view: ChartView, x: Axis, y: Axis, *, banded: str = "") -> Any:
    """One point per layer; `banded` names the channel ("x" or "y") that shows alpha."""
    scales = {"x": x.scale(view.values(x.metric)), "y": y.scale(view.values(y.metric))}
    across = alt.X(f"{x.metric}:Q", title=x.title, scale=scales["x"], axis=x.axis(scales["x"]))
    up = alt.Y(f"{y.metric}:Q", title=y.title, scale=scales["y"], axis=y.axis(scales["y"]))
    valid = f"isValid(datum['{x.metric}']) && isValid(datum['{y.metric}'])"
    base = alt.Chart(view.layers).transform_filter(valid)
    lines = [rule(view, channel, axis.line) for channel, axis in (("x", x), ("y", y)) if axis.line is not None]
    marks = points(base, view, x=across, y=up, tooltip=tooltip(view, x.metric, y.metric), **role_encodings(view))
    found = [*(bands(view, banded, scales[banded]) if banded else []), *lines, *marks]
    return alt.layer(*found).properties(width=view.width, height=330)


def summary_of(metric: str) -> str:
    """What a metric is, in a line."""
    return METRICS[metric].summary if metric in METRICS else metric
