"""What each format does to every layer: error along depth, shift of alpha, directions, ranks, spectra."""

from __future__ import annotations

from typing import Any

import altair as alt

from tailwise.report.charts.building import place_axis, role_encodings
from tailwise.report.charts.chart import Guidance
from tailwise.report.charts.data import Record, rounded
from tailwise.report.precision.drawing import figure
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.precision.sections import (
    boxes,
    by_row,
    crowded,
    row_axis,
    row_bands,
    symlog,
    tooltip,
)


@figure(
    "distortion_by_depth",
    "Which layers suffer more",
    Guidance(
        "A panel a format: relative error of every layer, divided by the median of that format (named above the "
        "panel), along depth. 2 is 6 dB less signal to noise.",
        "points near 1: every layer tolerates the format alike.",
        "points far above 1: layers that need more bits than the rest.",
    ),
)
def distortion_by_depth(view: StudyView) -> Any:
    """Relative error along depth, format by format, beside the median of the format."""
    middle = {item.format: item.relative_error or 1.0 for item in view.lossy}
    bits = {item.format: item.bits or 0.0 for item in view.lossy}
    title = {name: f"{name}|{bits[name]:.3g} bits, median {value:.2g}" for name, value in middle.items()}
    rows = [
        {**row, "panel": title[row["format"]], "ratio": rounded(row["relative_error"] / middle[row["format"]])}
        for row in view.readings
        if row["format"] in middle and row["relative_error"]
    ]
    ratios = [row["ratio"] for row in rows] or [1.0]
    domain = [min(min(ratios) / 1.06, 0.88), max(max(ratios) * 1.06, 1.13)]
    columns = 3
    x = place_axis(view, rows or view.records, ticks=4)
    near = domain[0] > 0.72 and domain[1] < 1.38
    known = (0.8, 0.9, 1, 1.1, 1.2, 1.3) if near else (0.01, 0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1, 1.4, 2, 3, 5, 10, 100)
    ticks = [tick for tick in known if domain[0] <= tick <= domain[1]]
    y = alt.Y("ratio:Q", title="error / median", scale=alt.Scale(type="log", domain=domain, nice=False),
              axis=alt.Axis(values=ticks, format="~g"))  # fmt: skip
    base = alt.Chart()
    line = base.mark_rule(color=view.palette["rule"], strokeDash=[5, 4]).encode(y=alt.datum(1))
    look = role_encodings(view)
    dots = base.mark_point(filled=True, size=10 if crowded(view) else 26, opacity=0.85)
    tips = tooltip(view, "format", "relative_error", "sqnr_db", "alpha")
    header = alt.Header(labelExpr="split(datum.label, '|')", labelPadding=6, labelFontWeight="normal", labelFontSize=11,
                        title=view.depth.title, titleOrient="bottom", titleFontWeight="normal")  # fmt: skip
    return (
        alt.layer(line, dots.encode(x=x, y=y, tooltip=tips, **look), data=view.data("ratios", rows))
        .properties(width=(view.width - 90) // columns, height=110)
        .facet(alt.Facet("panel:N", sort=list(title.values()), header=header), columns=columns, spacing=16)
    )


@figure(
    "alpha_shift_by_format",
    "What moves α",
    Guidance(
        "Change of α of every layer by format. The wide band is twice the standard error of α itself; the narrow band "
        "in it is twice the standard error of the change, which is smaller since both tails are of one layer.",
        "points inside the wide band: the tail is where it was, as far as α can tell.",
        "points outside it: the format has changed the tail.",
        "Between the bands the change is real, but smaller than α is known. The axis is linear within ±0.01.",
    ),
)
def alpha_shift_by_format(view: StudyView) -> Any:
    """Change of α with its error, format by format."""
    bands: list[Record] = [
        {"row": index, "noise": rounded(2 * (item.noise or 0.0)), "paired": rounded(2 * (item.shift_se or 0.0))}
        for index, item in enumerate(view.summaries)
    ]
    values = [row["alpha_shift"] for row in view.readings if row["alpha_shift"] is not None]
    edges = [sign * band["noise"] for band in bands for sign in (-1, 1)]
    x = symlog(values + edges, "change of α", ticks=(0, 0.01, 0.1, 0.3, 1, 3, 10, 30))
    return by_row(view, "alpha_shift", x, under=row_bands(view, bands, x))


@figure(
    "overlap_by_format",
    "Leading directions kept",
    Guidance(
        "How much of the leading singular directions is left: 1 is all, 0 is none. A layer a point, a format a row; "
        "the tick is the median.",
        "near 1.",
        "far below 1: the directions that carry the layer are others now.",
        "Directions with nearly equal singular values turn easily without harm.",
    ),
)
def overlap_by_format(view: StudyView) -> Any:
    """Overlap of the leading subspaces, format by format."""
    values = [row["overlap"] for row in view.readings if row["overlap"] is not None] or [1.0]
    low = min(*values, 0.95)
    scale = alt.Scale(domain=[low - 0.04 * (1 - low) - 1e-4, 1 + 0.02 * (1 - low) + 1e-4], nice=False, clamp=True)
    return by_row(view, "overlap", alt.X("overlap:Q", title="overlap", scale=scale, axis=alt.Axis(tickCount=6)))


@figure(
    "stable_rank_by_format",
    "Change of the stable rank",
    Guidance(
        "Relative change of the stable rank of every layer by format: noise of rounding is flat, and raises it.",
        "near 0.",
        "far from 0: more or fewer directions carry the layer.",
        "The axis is linear within ±0.1 %.",
    ),
)
def stable_rank_by_format(view: StudyView) -> Any:
    """Change of the stable rank, format by format."""
    values = [row["stable_rank_change"] for row in view.readings if row["stable_rank_change"] is not None]
    x = symlog(values, "relative change", ticks=(0, 0.001, 0.01, 0.1, 0.3, 1, 3, 10), field="stable_rank_change",
               constant=0.001, percent=True)  # fmt: skip
    return by_row(view, "stable_rank_change", x)


@figure(
    "spectral_distance_by_format",
    "How far the spectrum moves",
    Guidance(
        "Wasserstein-1 distance between the logarithms of the eigenvalues, before and after: 0.1 is about 10 % on "
        "every eigenvalue.",
        "near 0.",
        "large: the whole spectrum is another; small eigenvalues go first.",
    ),
)
def spectral_distance_by_format(view: StudyView) -> Any:
    """Distance between the spectra, format by format."""
    values = [row["spectral_distance"] for row in view.readings if row["spectral_distance"] is not None]
    ticks = (0, 1e-4, 1e-3, 0.01, 0.1, 1, 10)
    x = symlog(values, "mean |Δ ln λ|", ticks=ticks, field="spectral_distance", constant=1e-4)
    return by_row(view, "spectral_distance", x)


@figure(
    "alpha_distribution_by_precision",
    "α by format",
    Guidance(
        "α of the largest eigenvalues (Hill) over all layers, by format: the box is the middle half, the line in it "
        "the median, the whiskers reach the last layer within 1.5 boxes.",
        "boxes at one height: the formats leave the tails alone.",
        "a box that leaves the others.",
        "All roles in one box: see the layers for what becomes of each.",
    ),
)
def alpha_distribution(view: StudyView) -> Any:
    """Box plot of α by format."""
    return boxes(view, row_axis)
