"""W against its own entries in random order: correlation traps and the randomisation distance."""

from __future__ import annotations

from typing import Any

from tailwise.report.charts.building import ALPHA, Axis, histogram, metric_histogram, scatter
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import whole_bins
from tailwise.report.charts.panels import along_depth
from tailwise.report.charts.view import ChartView

_RD = "1 − RD"
_BOTH = "Sources disagree: one calls a high 1 − RD good, another a high RD. Rank nothing by it alone."
_TRAPS = "no traps, or very few."
_MANY = "traps in many layers: single large weights stand out of the bulk, a sign of over-fitting."


@chart(
    "rd_vs_alpha",
    title="Distance from random, against α",
    needs=("alpha", "one_minus_rd", "ks_distance"),
    guidance=Guidance(
        "1 − RD is 1 where the spectrum is that of W's own entries in random order.",
        "points that fall to the left of 4 as they leave 1: structure and heavy tails grow together.",
        "points at 1: nothing but the entries themselves, as in an untrained layer.",
        _BOTH,
    ),
)
def rd_vs_alpha(view: ChartView) -> Any:
    """1 − RD against α."""
    return scatter(view, Axis("alpha", ALPHA, log=True), Axis("one_minus_rd", _RD), banded="x")


@chart(
    "rd_hist",
    title="Distance from random",
    needs=("one_minus_rd", "ks_distance"),
    guidance=Guidance(
        "Layers by 1 − RD; 1 is a spectrum like that of W's entries in random order.",
        "one hill: the layers have left randomness together.",
        "a group near 1 (untrained) or far below the others (over-correlated).",
        _BOTH,
    ),
)
def rd_hist(view: ChartView) -> Any:
    """Histogram of 1 − RD."""
    return metric_histogram(view, Axis("one_minus_rd", _RD))


@chart(
    "rd_by_layer",
    title="Distance from random along depth",
    needs=("one_minus_rd", "ks_distance"),
    guidance=Guidance(
        "1 − RD along depth, by role; small block numbers are near the data.",
        "a smooth line within each role.",
        "a block that jumps away from its neighbours, or stays at 1 as if untrained.",
        _BOTH,
    ),
)
def rd_by_layer(view: ChartView) -> Any:
    """1 − RD along depth, by role."""
    return along_depth(view, Axis("one_minus_rd", _RD))


@chart(
    "traps_vs_alpha",
    title="Correlation traps against α",
    needs=("alpha", "num_traps", "ks_distance"),
    guidance=Guidance(
        "Spikes that stay when W's entries are permuted, so made by single large weights.",
        _TRAPS,
        "traps at α below 2: the layer memorises.",
    ),
)
def traps_vs_alpha(view: ChartView) -> Any:
    """Correlation traps against α."""
    return scatter(view, Axis("alpha", ALPHA, log=True), Axis("num_traps", "traps", zero=True), banded="x")


@chart(
    "traps_hist",
    title="Correlation traps",
    needs=("num_traps", "ks_distance"),
    guidance=Guidance("Layers by the number of their correlation traps.", _TRAPS, _MANY),
)
def traps_hist(view: ChartView) -> Any:
    """Histogram of the number of traps."""
    return histogram(view, Axis("num_traps", "traps per layer", whole=True), whole_bins(view.values("num_traps")))


@chart(
    "traps_by_layer",
    title="Correlation flow: traps along depth",
    needs=("num_traps", "ks_distance"),
    guidance=Guidance(
        "Correlation traps along depth, by role; small block numbers are near the data.",
        "zero from end to end.",
        "a block or a role where traps pile up: look there for outlier weights, or too high a learning rate.",
    ),
)
def traps_by_layer(view: ChartView) -> Any:
    """Traps along depth, by role."""
    return along_depth(view, Axis("num_traps", "traps", zero=True))
