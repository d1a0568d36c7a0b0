"""Small charts along depth, one per role: the shape that most charts of an audit share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import altair as alt

from tailwise.report.charts.building import (
    CROWD,
    Axis,
    bands,
    place_axis,
    points,
    role_encodings,
    rule,
    tooltip,
)
from tailwise.report.charts.data import OUTSIDE, ordered
from tailwise.report.charts.deep import SAYS, deep_layers, is_deep, stretches
from tailwise.report.charts.view import ORDER, ChartView


def along_depth(
    view: ChartView, y: Axis, *, sigma: str | None = None, noise: str | None = None, banded: bool = False
) -> Any:
    """A small chart per role: every layer, the mean per block, its error, and the noise of its shape."""
    records = [record for record in view.records if record.get(y.metric) is not None]
    panels = ordered((record["panel"] for record in records), [*ORDER, OUTSIDE])
    columns = min(len(panels), 4)
    x = place_axis(view, records, ticks=4 if columns > 2 else 12)
    values = [record[y.metric] for record in records]
    if noise and view.has(noise):
        values = [*values, *(record[noise] for record in records if record[noise] is not None)]
    scale = y.scale(values)
    vertical = alt.Y(f"{y.metric}:Q", title=y.title, scale=scale, axis=y.axis(scale, wide=False))
    base = alt.Chart()
    # One legend setting in all layers: a layer without a legend would take it from the others.
    colors = role_encodings(view, legend=OUTSIDE in panels, only=_outside(records))
    crowd = len(view.records) > CROWD
    under = [
        *(bands(view, "y", scale) if banded else []),
        *([rule(view, "y", y.line)] if y.line is not None else []),
    ]
    layers = [
        *under,
        *_noise(view, x, scale, noise),
        *_errors(base, y, x, scale, sigma if sigma and view.has(sigma) and not crowd else None, colors["color"]),
        *([] if crowd else [_means(view, base, y, x, scale, colors["color"])]),
        *points(base, view, size=34, x=x, y=vertical, tooltip=tooltip(view, y.metric), **colors),
        *([_means(view, base, y, x, scale, alt.value(view.palette["ink"]))] if crowd else []),
    ]
    source, valid = view.layers, f"isValid(datum['{y.metric}'])"
    if is_deep(view):
        rows = stretches(view.records, y.metric, log=y.log, noise=noise)
        source, valid = view.data(f"deep_{y.metric}", rows), "true"
        drawn = deep_layers(view, y, x, scale, noise=noise is not None and view.has(noise), outside=_outside(records))
        layers = [*under, *drawn]
    title = [view.depth.title, SAYS] if is_deep(view) else view.depth.title
    width = max(90, (view.width - 60 - 14 * (columns - 1)) // columns)
    header = alt.Header(
        labelPadding=4, titleOrient="bottom", labelOrient="top", titleFontWeight="normal", titlePadding=6
    )
    return (
        alt.layer(*layers, data=source)
        .properties(width=width, height=120 if columns > 1 else 240)
        .transform_filter(valid)
        .facet(alt.Facet("panel:N", sort=panels, header=header, title=title), columns=columns, spacing=14)
    )


def _outside(records: Sequence[Any]) -> list[str]:
    return ordered((record["role"] for record in records if record["panel"] == OUTSIDE), ORDER)


def _noise(view: ChartView, x: alt.X, scale: alt.Scale, noise: str | None) -> list[alt.Chart]:
    if noise is None or not view.has(noise):
        return []
    line = alt.Chart().transform_filter(f"isValid(datum['{noise}']) && isValid(datum.block)")
    line = line.transform_aggregate(level=f"mean({noise})", groupby=["place", "panel"])
    mark = line.mark_line(color=view.palette["noise"], strokeDash=[4, 3], strokeWidth=1.4)
    return [mark.encode(x=x, y=alt.Y("level:Q", scale=scale))]


def _errors(base: alt.Chart, y: Axis, x: alt.X, scale: alt.Scale, sigma: str | None, color: Any) -> list[alt.Chart]:
    if sigma is None:
        return []
    spread = base.transform_calculate(
        below=f"datum['{y.metric}'] - datum['{sigma}']", above=f"datum['{y.metric}'] + datum['{sigma}']"
    )
    mark = spread.mark_rule(opacity=0.45, strokeWidth=1.6, clip=True)
    return [mark.encode(x=x, y=alt.Y("below:Q", scale=scale), y2="above:Q", color=color)]


def _means(view: ChartView, base: alt.Chart, y: Axis, x: alt.X, scale: alt.Scale, color: Any) -> alt.Chart:
    inside = base.transform_filter("isValid(datum.block)") if not view.depth.ordinal else base
    averaged = inside.transform_aggregate(level=f"mean({y.metric})", groupby=["place", "panel", "role"])
    mark = averaged.mark_line(strokeWidth=1.4, opacity=0.75)
    line: alt.Chart = mark.encode(x=x, y=alt.Y("level:Q", scale=scale), color=color)
    return line
