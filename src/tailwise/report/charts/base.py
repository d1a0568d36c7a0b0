"""An audit against its base: what training, fine-tuning or compression changed."""

from __future__ import annotations

from typing import Any

import altair as alt

from tailwise.core.errors import UsageError
from tailwise.report.charts.building import ALPHA, BELOW_TWO, Axis, place_axis, role_encodings, rule
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import OUTSIDE, Record, ordered, rounded
from tailwise.report.charts.view import ORDER, ChartView

_DEPTH = "after − base, along depth, by role; small block numbers are near the data. Filled: beyond its error."


def _changes(view: ChartView, metric: str) -> list[Record]:
    """One record per layer that both audits have."""
    here = {record["name"]: record for record in view.records}
    rows = []
    for layer in view.comparison.layers:
        delta, record = layer.deltas.get(metric), here.get(layer.name)
        if delta is None or record is None or delta.change is None:
            continue
        kept = {key: record[key] for key in ("name", "role", "block", "place", "panel", "shape")}
        rows.append({**kept, "before": rounded(delta.before), "after": rounded(delta.after),
                     "change": rounded(delta.change), "sure": delta.significant is not False})  # fmt: skip
    if not rows:
        raise UsageError(f"no layer has {metric} in both audits", where=view.audit.model,
                         fix="audit both models with the same options")  # fmt: skip
    return rows


def _tips(metric: str) -> list[alt.Tooltip]:
    facts = [alt.Tooltip(f"{name}:N") for name in ("name", "role", "block", "shape")]
    return [*facts, *(alt.Tooltip(f"{key}:Q", title=f"{metric} {key}", format=".4~g")
                      for key in ("before", "after", "change"))]  # fmt: skip


def _delta(view: ChartView, metric: str, title: str) -> Any:
    """Change along depth: a stem and a point per layer, a small chart per role."""
    rows = _changes(view, metric)
    source = view.data("changes", rows)
    panels = ordered((row["panel"] for row in rows), [*ORDER, OUTSIDE])
    columns = min(len(panels), 4)
    x = place_axis(view, rows, ticks=4 if columns > 2 else 12)
    scale = Axis("change", title, line=0.0).scale([row["change"] for row in rows], pad=0.08)
    y = alt.Y("change:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    outside = ordered((row["role"] for row in rows if row["panel"] == OUTSIDE), ORDER)
    colors = role_encodings(view, legend=bool(outside), only=outside)
    base = alt.Chart()
    stems = base.mark_rule(opacity=0.6, strokeWidth=1.6).encode(x=x, y=y, y2=alt.datum(0), color=colors["color"])
    both = {"x": x, "y": y, "tooltip": _tips(metric), **colors}
    layers = [
        rule(view, "y", 0.0),
        stems,
        base.transform_filter("datum.sure").mark_point(filled=True, size=34, opacity=1).encode(**both),
        base.transform_filter("!datum.sure").mark_point(filled=False, size=34, opacity=1).encode(**both),
    ]
    header = alt.Header(labelPadding=4, titleOrient="bottom", labelOrient="top", titleFontWeight="normal")
    width = max(90, (view.width - 60 - 14 * (columns - 1)) // columns)
    return (
        alt.layer(*layers, data=source)
        .properties(width=width, height=120 if columns > 1 else 240)
        .facet(alt.Facet("panel:N", sort=panels, header=header, title=view.depth.title), columns=columns, spacing=14)
    )


@chart(
    "base_alpha",
    title="α against the base",
    scope="base",
    needs=("alpha",),
    guidance=Guidance(
        "Each layer's α in the base (across) and after (up); on the diagonal nothing changed.",
        "the green corner: from above 4 to between 2 and 4.",
        "the red corner: from between 2 and 4 to above 4; the violet one: from there to below 2.",
        "Hollow: the change is within its statistical error. Corners are those of WeightWatcher's help page; roles "
        "differ in α, and a layer may leave 2–4 without harm.",
    ),
)
def base_alpha(view: ChartView) -> Any:
    """α before and after, with the better and the worse corner marked."""
    rows = _changes(view, "alpha")
    scale = Axis("alpha", ALPHA, log=True).scale(
        [*(row[key] for row in rows for key in ("before", "after")), BELOW_TWO]
    )
    low, high = (float(value) for value in scale.to_dict()["domain"])
    axis = Axis("alpha", ALPHA, log=True).axis(scale)
    x = alt.X("before:Q", title="α in the base (log scale)", scale=scale, axis=axis)
    y = alt.Y("after:Q", title="α after (log scale)", scale=scale, axis=axis)
    source = alt.Chart(view.data("changes", rows))
    both = {"x": x, "y": y, "tooltip": _tips("alpha"), **role_encodings(view)}
    ends = alt.Chart(view.data("diagonal", [{"v": low}, {"v": high}]))
    diagonal = ends.mark_line(color=view.palette["rule"], strokeDash=[5, 4]).encode(
        x=alt.X("v:Q", scale=scale), y=alt.Y("v:Q", scale=scale)
    )
    marks = [
        source.transform_filter("datum.sure").mark_point(filled=True, size=48, opacity=0.9).encode(**both),
        source.transform_filter("!datum.sure").mark_point(filled=False, size=48, opacity=0.9).encode(**both),
    ]
    corners = _corners(view, low, high, scale) if view.banded and view.base_banded else []
    return alt.layer(*corners, diagonal, *marks).properties(width=view.width, height=400)


def _corners(view: ChartView, low: float, high: float, scale: alt.Scale) -> list[alt.Chart]:
    """Rectangles where α enters 2 to 4, where it leaves, and where it falls below 2."""
    corners = (
        ("better: into 2–4", "better", "band.good", (4.0, high), (2.0, 4.0)),
        ("worse: out of 2–4", "worse", "band.under", (2.0, 4.0), (4.0, high)),
        ("worse: below 2", "worse", "band.over", (2.0, 4.0), (low, 2.0)),
    )
    found = []
    for index, (label, ink, paper, across, up) in enumerate(corners):
        left, right, bottom, top = max(across[0], low), min(across[1], high), max(up[0], low), min(up[1], high)
        if left >= right or bottom >= top:
            continue
        row = {"left": left, "right": right, "bottom": bottom, "top": top, "label": label}
        area = alt.Chart(view.data(f"corner{index}", [row]))
        x, y = alt.X("left:Q", scale=scale), alt.Y("bottom:Q", scale=scale)
        found.append(area.mark_rect(color=view.palette[paper], opacity=1).encode(x=x, x2="right:Q", y=y, y2="top:Q"))
        words = area.mark_text(align="left", baseline="top", dx=6, dy=6, color=view.palette[ink], fontWeight="bold")
        found.append(words.encode(x=x, y=alt.Y("top:Q", scale=scale), text="label:N"))
    return found


@chart(
    "delta_alpha",
    title="Change of α",
    scope="base",
    needs=("alpha",),
    guidance=Guidance(
        "α " + _DEPTH, "towards 2 to 4.", "large jumps in a few layers, or a drift of all of them above 6 or below 2."
    ),
)
def delta_alpha(view: ChartView) -> Any:
    """Δα along depth, by role."""
    return _delta(view, "alpha", "Δ α")


@chart(
    "delta_rd",
    title="Change of 1 − RD",
    scope="base",
    needs=("one_minus_rd",),
    guidance=Guidance("1 − RD " + _DEPTH, "even along depth.", "a few layers that move far: look at them first.",
                      "Sources disagree on whether high is good."),
)  # fmt: skip
def delta_rd(view: ChartView) -> Any:
    """Δ(1 − RD) along depth, by role."""
    return _delta(view, "one_minus_rd", "Δ (1 − RD)")


@chart(
    "delta_detX",
    title="Change of detX",
    scope="base",
    needs=("detX_delta",),
    guidance=Guidance("detX " + _DEPTH, "towards detX = 0, critical balance.", "away from it in many layers."),
)
def delta_balance(view: ChartView) -> Any:
    """ΔdetX along depth, by role."""
    return _delta(view, "detX_delta", "Δ detX")


@chart(
    "delta_traps",
    title="Change of correlation traps",
    scope="base",
    needs=("num_traps",),
    guidance=Guidance(
        "Traps " + _DEPTH, "zero or below: no new traps.", "new traps: over-fitting, or outlier weights."
    ),
)
def delta_traps(view: ChartView) -> Any:
    """Δ traps along depth, by role."""
    return _delta(view, "num_traps", "Δ traps")


@chart(
    "delta_scale",
    title="Change of scale",
    scope="base",
    needs=("log_spectral_norm",),
    guidance=Guidance(
        "log10 λmax " + _DEPTH, "near 0, smooth along depth.", "jumps: blow-ups that a merge or a quantizer will feel."
    ),
)
def delta_scale(view: ChartView) -> Any:
    """Δ scale along depth, by role."""
    return _delta(view, "log_spectral_norm", "Δ log10 λmax")


@chart(
    "delta_alpha_weighted",
    title="Change of weighted α",
    scope="base",
    needs=("alpha_weighted",),
    guidance=Guidance("α · log10 λmax " + _DEPTH, "down: heavier tails without a larger scale.", "up in many layers."),
)
def delta_alpha_weighted(view: ChartView) -> Any:
    """Δα̂ along depth, by role."""
    return _delta(view, "alpha_weighted", "Δ weighted α")


@chart(
    "delta_rank",
    title="Change of effective rank",
    scope="base",
    needs=("effective_rank",),
    guidance=Guidance("Effective rank " + _DEPTH, "small and even.", "a sharp loss in a few layers: they collapse."),
)
def delta_rank(view: ChartView) -> Any:
    """Δ effective rank along depth, by role."""
    return _delta(view, "effective_rank", "Δ effective rank")


@chart(
    "delta_stable_rank",
    title="Change of stable rank",
    scope="base",
    needs=("stable_rank",),
    guidance=Guidance(
        "Stable rank " + _DEPTH,
        "small and even.",
        "a sharp fall towards 1: one direction takes the layer over.",
        "It grows with the size of the matrix: compare within a role.",
    ),
)
def delta_stable_rank(view: ChartView) -> Any:
    """Δ stable rank along depth, by role."""
    return _delta(view, "stable_rank", "Δ stable rank")
