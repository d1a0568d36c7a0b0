"""Pieces of the pictures of a study: rows of layers, a format each; boxes; axes for small and large changes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import altair as alt
import numpy as np

from tailwise.report.charts.building import ALPHA, Axis, role_encodings
from tailwise.report.charts.data import Record, rounded
from tailwise.report.precision.precision_view import StudyView

#: More readings than this in one row are drawn small.
_CROWD = 400
#: Up to so many layers a box has its points on top.
_FEW = 400
_ROW = 30


def crowded(view: StudyView) -> bool:
    """Whether the points must be small."""
    return len(view.records) > _CROWD


def tooltip(view: StudyView, *fields: str) -> list[alt.Tooltip]:
    """The layer, and the numbers that are asked for and there."""
    facts = (("name", "layer"), ("role", "role"), ("block", "block"), ("shape", "shape"))
    entries = [alt.Tooltip(f"{key}:N", title=title) for key, title in facts]
    for field in fields:
        if field == "format":
            entries.append(alt.Tooltip("format:N"))
        elif view.has(field):
            entries.append(alt.Tooltip(f"{field}:Q", title=field, format=".4~g"))
    return entries


def row_axis(view: StudyView, formats: Sequence[str]) -> dict[str, Any]:
    """Scale and axis of a row (or column) per format, with its name and bits."""
    scale = alt.Scale(domain=[-0.5, len(formats) - 0.5], nice=False, zero=False)
    values = list(range(len(formats)))
    return {"scale": scale, "axis": alt.Axis(values=values, labelExpr=view.labels(formats), grid=False,
            ticks=False, domain=False, labelOverlap=False, labelLimit=170)}  # fmt: skip


def _downwards(view: StudyView) -> dict[str, Any]:
    look = row_axis(view, view.formats)
    look["scale"]["reverse"] = True
    return look


def by_row(view: StudyView, field: str, x: alt.X, *, under: Sequence[alt.Chart] = ()) -> Any:
    """A row a format, the most bits on top: every layer as a point, the median as a tick."""
    rows = [row for row in view.readings if row[field] is not None]
    look = _downwards(view)
    y = alt.Y("row:Q", title=None, **look)
    middles = []
    for index, name in enumerate(view.formats):
        values = [row[field] for row in rows if row["format"] == name]
        if values:
            middles.append({"top": index - 0.4, "bottom": index + 0.4, field: rounded(float(np.median(values)))})
    points = alt.Chart(view.data("readings", rows)).mark_point(
        filled=True, size=9 if crowded(view) else 24, opacity=0.8, clip=True
    )
    tips = tooltip(view, "format", field, *(["alpha_shift_se", "alpha_sigma"] if field == "alpha_shift" else []))
    ticks = alt.Chart(view.data("middles", middles)).mark_rule(color=view.palette["ink"], strokeWidth=2, clip=True)
    layers = [
        *under,
        points.encode(x=x, y=y, tooltip=tips, **role_encodings(view)),
        ticks.encode(x=x, y=alt.Y("top:Q", title=None, **look), y2="bottom:Q"),
    ]
    return alt.layer(*layers).properties(width=view.width - 90, height=_ROW * max(len(view.formats), 2))


def row_bands(view: StudyView, bands: Sequence[Record], x: alt.X) -> list[alt.Chart]:
    """Twice the standard error of alpha, and in it twice that of the change, across each row."""
    rows = [
        {"from": -band[key], "to": band[key], "top": band["row"] - 0.44, "bottom": band["row"] + 0.44, "of": key}
        for key in ("noise", "paired")
        for band in bands
        if band[key]
    ]
    source = alt.Chart(view.data("bands", rows))
    span = alt.X("from:Q", scale=x["scale"], axis=x["axis"], title=x["title"])
    y = alt.Y("top:Q", title=None, **_downwards(view))
    return [
        source.transform_filter(f"datum.of == '{key}'")
        .mark_rect(color=view.palette[color], opacity=opacity, clip=True)
        .encode(x=span, x2="to:Q", y=y, y2="bottom:Q")
        for key, color, opacity in (("noise", "noise", 0.22), ("paired", "muted", 0.38))
    ]


def symlog(
    values: Sequence[float],
    title: str,
    *,
    ticks: Sequence[float],
    field: str = "alpha_shift",
    constant: float = 0.01,
    percent: bool = False,
) -> alt.X:
    """An axis that is linear up to `constant` and logarithmic beyond, with a tick at ± each of `ticks`."""
    low, high = min([*values, -constant]), max([*values, constant])
    if min(values, default=0.0) >= 0:
        low = -0.25 * constant
    domain = [low * 1.15, high * 1.15]
    both = sorted({sign * tick for tick in ticks for sign in (-1, 1)})
    shown = [tick for tick in both if domain[0] <= tick <= domain[1]]
    form = ".1~%" if percent else "~g"
    axis = alt.Axis(values=shown, format=form, labelOverlap="greedy", grid=True)
    scale = alt.Scale(type="symlog", constant=constant, domain=domain, nice=False, clamp=True)
    return alt.X(f"{field}:Q", title=title, scale=scale, axis=axis)


def error_axis(values: Sequence[float]) -> list[float]:
    """The domain of a logarithmic axis around relative errors."""
    known = [value for value in values if value > 0] or [0.01, 0.1]
    return [min(known) / 1.5, max(known) * 1.5]


def log_ticks(domain: Sequence[float]) -> list[float]:
    """1, 2 and 5 of each decade; 1 alone where there are many decades."""
    low, high = domain
    steps = (1, 2, 5) if math.log10(high / low) < 2.2 else (1,)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{step}e{power}") for power in powers for step in steps]
    return [tick for tick in ticks if low <= tick <= high]


def nudged(rows: list[Record], domain: Sequence[float], height: int) -> None:
    """Give each row a `label`, the error at which its name stands: the nearest place without a name or a point."""
    low, high = (math.log(value) for value in domain)
    apart = 13 * (high - low) / height
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["error"]):
        at, bits = math.log(row["error"]), row["bits"]
        taken = [other for there, other in placed if abs(there - bits) < 3.2]
        taken += [math.log(other["error"]) for other in rows if 0 < other["bits"] - bits < 1.2]
        tried = sorted((at + step * apart / 4 for step in range(-120, 121)), key=lambda place: abs(place - at))
        free = (place for place in tried if low < place < high and all(abs(place - it) >= apart for it in taken))
        place = next(free, at)
        placed.append((bits, place))
        row["label"] = rounded(math.exp(place))


def boxes(view: StudyView, axis: Callable[[StudyView, Sequence[str]], dict[str, Any]]) -> Any:
    """Boxes of alpha, a column a format in the order asked for, with the layers on top where they are few."""
    formats = list(view.study.formats)
    columns = {name: index for index, name in enumerate(formats)}
    points = [
        {**row, "column": round(columns[row["format"]] + 0.6 * (row["row"] - view.formats.index(row["format"])), 3)}
        for row in view.readings
        if row["alpha_in_format"] is not None
    ]
    stats = [_box(index, [row["alpha_in_format"] for row in points if row["format"] == name])
             for name, index in columns.items()]  # fmt: skip
    alpha = Axis("alpha", ALPHA, log=True)
    scale = alpha.scale([row["alpha_in_format"] for row in points] or [2.0, 6.0])
    look = axis(view, formats)
    crowd = len(formats) > 6
    look["axis"]["labelExpr"] = f"{json.dumps(formats, ensure_ascii=False)}[datum.value]"
    look["axis"]["labelAngle"] = -40 if crowd else 0
    look["axis"]["domain"] = True
    x = alt.X("left:Q", title=None, **look)
    y: dict[str, Any] = {"scale": scale, "axis": alpha.axis(scale), "title": "α Hill (log scale)"}
    source = alt.Chart(view.data("boxes", [item for item in stats if item]))
    ink, accent = view.palette["ink"], view.palette["accent"]
    column = alt.X("column:Q", title=None, **look)
    layers = [
        source.mark_rule(color=ink).encode(x=column, y=alt.Y("low:Q", **y), y2="q25:Q"),
        source.mark_rule(color=ink).encode(x=column, y=alt.Y("q75:Q", **y), y2="high:Q"),
        source.mark_rect(fill=accent, fillOpacity=0.28, stroke=accent).encode(x=x, x2="right:Q", y="q25:Q", y2="q75:Q"),
        source.mark_rule(color=ink, strokeWidth=2.2).encode(x=x, x2="right:Q", y="median:Q"),
    ]
    if len(view.records) <= _FEW:
        dots = alt.Chart(view.data("points", points)).mark_point(filled=True, size=14, opacity=0.55, clip=True)
        tips = tooltip(view, "format", "alpha_in_format", "alpha_shift")
        layers.append(dots.encode(x=column, y=alt.Y("alpha_in_format:Q", **y), tooltip=tips, **role_encodings(view)))
    return alt.layer(*layers).properties(width=max(300, min(view.width, 110 * len(formats))), height=320)


def _box(column: int, values: Sequence[float]) -> Record | None:
    if not values:
        return None
    q25, middle, q75 = (float(value) for value in np.quantile(values, [0.25, 0.5, 0.75]))
    reach = 1.5 * (q75 - q25)
    inside = [value for value in values if q25 - reach <= value <= q75 + reach]
    return {"column": column, "left": column - 0.3, "right": column + 0.3, "q25": q25, "median": middle, "q75": q75,
            "low": min(inside), "high": max(inside)}  # fmt: skip
