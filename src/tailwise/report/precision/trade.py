"""Bits against error, the verdict of every layer, and alpha against error."""

from __future__ import annotations

import math
from statistics import median
from typing import Any

import altair as alt

from tailwise.report.charts.building import ALPHA, Axis, place_axis
from tailwise.report.charts.chart import Guidance
from tailwise.report.charts.data import Record, ordered, rounded
from tailwise.report.charts.view import ORDER
from tailwise.report.precision.drawing import figure
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.precision.sections import (
    crowded,
    error_axis,
    log_ticks,
    nudged,
    tooltip,
)
from tailwise.report.theme import SHAPES, group_of, role_color


@figure(
    "bits_and_error",
    "Bits and error",
    Guidance(
        "Each format: bits per weight, scales counted, against the relative error of its layers: the median as a "
        "point, all layers as a line. Dashed: one half to the power of the bits, 6 dB for every bit, which no code of "
        "independent Gaussian weights can beat.",
        "low and to the left: near the dashed line.",
        "a long line: the format suits some layers and not others.",
        "Formats with an error below 1e−6 are not drawn.",
    ),
)
def bits_and_error(view: StudyView) -> Any:
    """The trade of bits for relative error, format by format."""
    rows: list[Record] = []
    for item in view.lossy:
        values = [value for value in view.study.values("relative_error", item.format).values() if value > 0]
        if values and item.bits is not None:
            low, high = min(values), max(values)
            rows.append({"format": item.format, "bits": rounded(item.bits), "error": rounded(median(values)),
                         "low": rounded(low), "high": rounded(high)})  # fmt: skip
    scale = error_axis([row["low"] for row in rows] + [row["high"] for row in rows])
    most = max((row["bits"] for row in rows), default=8)
    across = alt.Scale(domain=[1, most + 0.24 * (most - 1)], nice=False)
    nudged(rows, scale, height=340)
    source = alt.Chart(view.data("trade", rows))
    x = alt.X("bits:Q", title="bits per weight", scale=across, axis=alt.Axis(tickMinStep=1, format="d"))
    y = alt.Y("error:Q", title="relative error", scale=alt.Scale(type="log", domain=scale, nice=False),
              axis=alt.Axis(values=log_ticks(scale), format="~g"))  # fmt: skip
    numbers = (alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("bits", "error", "low", "high"))
    tips = [alt.Tooltip("format:N"), *numbers]
    lowest, highest = scale
    ends = (-math.log2(highest), -math.log2(lowest))
    limit = alt.Chart(view.data("limit", [{"at": at, "limit": 2.0**-at} for at in ends]))
    at = alt.X("at:Q", scale=across)
    ink, accent = view.palette["ink"], view.palette["accent"]
    wide = alt.expr("width < 430 ? 0 : 1")
    layers = [
        limit.mark_line(clip=True, color=view.palette["noise"], strokeDash=[5, 4]).encode(x=at, y="limit:Q"),
        source.mark_rule(strokeWidth=3, opacity=0.4, color=accent).encode(x=x, y="low:Q", y2="high:Q"),
        source.mark_point(filled=True, size=60, opacity=1, color=accent).encode(x=x, y=y, tooltip=tips),
        source.mark_rule(color=view.palette["rule"], strokeWidth=0.7, opacity=wide, xOffset=5, x2Offset=13).encode(
            x=x, x2="bits:Q", y="error:Q", y2="label:Q"),
        source.mark_text(align="left", dx=16, fontSize=11, color=ink, opacity=wide).encode(
            x=x, y="label:Q", text="format:N"),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=view.width, height=340)


@figure(
    "verdict_heat",
    "Lowest format within the bound",
    Guidance(
        "One cell per role and block: the lowest format that keeps every bound (where a block has several layers of "
        "a role, that of the layer that needs most bits). Stronger colour: more bits.",
        "one colour nearly everywhere.",
        "cells that stand out: layers to keep at more bits.",
    ),
)
def verdict_heat(view: StudyView) -> Any:
    """The verdict of every layer as role × block."""
    rows = _cells(view)
    used = [name for name in reversed(view.formats) if any(row["format"] == name for row in rows)]
    none = [_NONE] if any(row["format"] == _NONE for row in rows) else []
    colors = [*view.shades(len(used)), *[view.palette["contrast"]] * len(none)]
    roles = ordered((row["role"] for row in rows), ORDER)
    x = place_axis(view, rows, ticks=14, title=view.depth.title)
    y = alt.Y("role:N", sort=roles, title=None, axis=alt.Axis(grid=False, domain=False, ticks=False, labelFontSize=12))
    legend = alt.Legend(title=None, symbolType="square", symbolSize=130, columns=max(2, view.width // 105))
    color = alt.Color("format:N", sort=[*used, *none], legend=legend,
                      scale=alt.Scale(domain=[*used, *none], range=colors))  # fmt: skip
    source = alt.Chart(view.data("cells", rows))
    tips = [alt.Tooltip("role:N"), alt.Tooltip("place:Q", title="block"), alt.Tooltip("layers:Q"),
            alt.Tooltip("format:N"), alt.Tooltip("bits:Q", format=".3~g"), alt.Tooltip("reason:N")]  # fmt: skip
    span = alt.X("left:Q", scale=x["scale"], axis=x["axis"], title=x["title"])
    cells = source.mark_rect(cornerRadius=2, stroke=view.palette["grid"], strokeWidth=0.6)
    across = 2 + view.depth.high - view.depth.low
    strong = [*used[len(used) // 2 + len(used) % 2 :], *none]
    paper, ink = alt.value(view.palette["paper"]), alt.value(view.palette["ink"])
    names = source.mark_text(fontSize=10, opacity=alt.expr(f"width / {across} < 62 ? 0 : 1")).encode(
        x=alt.X("place:Q", scale=x["scale"], axis=x["axis"], title=x["title"]), y=y, text="format:N",
        color=alt.condition(alt.FieldOneOfPredicate(field="format", oneOf=strong), paper, ink),
    )  # fmt: skip
    layers = [cells.encode(x=span, x2="right:Q", y=y, color=color, tooltip=tips), names]
    return alt.layer(*layers).properties(width=view.width - 60, height=24 * len(roles))


_NONE = "none of them"


def _cells(view: StudyView) -> list[Record]:
    cells: dict[tuple[str, int], Record] = {}
    for record, item in zip(view.records, view.verdicts, strict=True):
        bits = math.inf if item.bits is None else item.bits
        key = record["role"], record["place"]
        cell = cells.setdefault(key, {"role": key[0], "place": key[1], "left": key[1] - 0.47, "right": key[1] + 0.47,
                                      "layers": 0, "most": -1.0})  # fmt: skip
        cell["layers"] += 1
        if bits > cell["most"]:
            cell |= {"most": bits, "format": item.format or _NONE, "bits": rounded(item.bits), "reason": item.reason}
    return [{key: value for key, value in cell.items() if key != "most"} for cell in cells.values()]


@figure(
    "alpha_and_error",
    "α and error",
    Guidance(
        "α of every layer against its relative error in one low-bit format; a colour a role.",
        "for a plan by α: points of one colour that rise, or fall, from left to right.",
        "clouds without direction, or a direction only between colours: α tells roles apart, not layers.",
    ),
)
def alpha_and_error(view: StudyView) -> Any:
    """α against the relative error in one low-bit format."""
    rows = [row for row in view.readings if row["format"] == view.low and row["relative_error"] and row["alpha"]]
    errors = [row["relative_error"] for row in rows] or [0.1]
    domain = [min(errors) / 1.04, max(errors) * 1.04]
    alpha = Axis("alpha", ALPHA, log=True)
    across = alpha.scale([row["alpha"] for row in rows] or [2.0, 4.0])
    x = alt.X("alpha:Q", title="α (Hill) of the layer as loaded, log scale", scale=across, axis=alpha.axis(across))
    y = alt.Y("relative_error:Q", title=f"relative error in {view.low}", axis=alt.Axis(tickCount=6, format="~g"),
              scale=alt.Scale(type="log", domain=domain, nice=False))  # fmt: skip
    marks = alt.Chart(view.data("scatter", rows)).mark_point(filled=True, size=10 if crowded(view) else 46, opacity=0.9)
    tips = tooltip(view, "format", "alpha", "alpha_sigma", "relative_error", "sqnr_db")
    drawn = marks.encode(x=x, y=y, tooltip=tips, **_roles_of(view, rows))
    return alt.layer(drawn).properties(width=view.width, height=330)


def _roles_of(view: StudyView, rows: list[Record]) -> dict[str, Any]:
    """Colour and shape by role, of the roles that these rows have."""
    roles = ordered((row["role"] for row in rows), ORDER)
    legend = alt.Legend(title=None, symbolOpacity=1, columns=max(2, view.width // 105))
    return {
        "color": alt.Color("role:N", sort=roles, legend=legend, scale=alt.Scale(
            domain=roles, range=[role_color(role, view.palette) for role in roles])),
        "shape": alt.Shape("role:N", sort=roles, legend=legend, scale=alt.Scale(
            domain=roles, range=[SHAPES[group_of(role)] for role in roles])),
    }  # fmt: skip
