"""The tail exponent α and how well the power law fits."""

from __future__ import annotations

from typing import Any

from tailwise.report.charts.building import ALPHA, Axis, histogram, metric_histogram, scatter
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import POOR_FIT, bins_of
from tailwise.report.charts.panels import along_depth
from tailwise.report.charts.view import ChartView

_HOLLOW = "Hollow: a fit that is not trusted has no verdict."


@chart(
    "alpha_hist",
    title="How heavy the tails are",
    needs=("alpha", "ks_distance"),
    guidance=Guidance(
        "Layers by their exponent α, all roles in one picture: read the shape, not a mean over roles.",
        "most layers between 2 and 4.",
        "many above 6 (under-trained) or below 2 (over-trained or memorising).",
        _HOLLOW,
    ),
)
def alpha_hist(view: ChartView) -> Any:
    """Histogram of α with the HT-SR bands."""
    values = view.values("alpha")
    return histogram(view, Axis("alpha", "α"), bins_of(values, low=1.0, cap=12.0, count=36), banded=True)


@chart(
    "hill_hist",
    title="How heavy the largest 10 % are",
    needs=("alpha_hill",),
    guidance=Guidance(
        "Layers by α Hill, the exponent of the largest 10 % of the eigenvalues, all roles in one picture.",
        "most layers between 2 and 4, as the alpha manual has it.",
        "many above 5, near what noise gives: light tails; near 1: rank collapse.",
        "Noise of the same shape gives 5 to 15, by shape: read a layer beside its noise (hill_by_layer).",
    ),
)
def hill_hist(view: ChartView) -> Any:
    """Histogram of Hill's α."""
    bins = bins_of(view.values("alpha_hill"), low=1.0, cap=16.0, count=36)
    return histogram(view, Axis("alpha_hill", "α Hill"), bins, hollow=False)


@chart(
    "alpha_vs_D",
    title="Which exponents can be trusted",
    needs=("alpha", "ks_distance"),
    guidance=Guidance(
        "Each layer's α against the distance D between its tail and the fitted power law.",
        "points at the bottom, between 2 and 4: heavy tails that are well fitted.",
        "points at the top: the tail is no power law, and α says nothing there.",
        f"The dashed line is D = {POOR_FIT}, about where Gaussian noise begins. Hollow: fits that are not trusted.",
    ),
)
def alpha_vs_distance(view: ChartView) -> Any:
    """α against D, the Kolmogorov-Smirnov distance of the fit."""
    return scatter(view, Axis("alpha", ALPHA, log=True), Axis("ks_distance", "D", zero=True, line=POOR_FIT), banded="x")


@chart(
    "D_hist",
    title="How well power laws fit",
    needs=("ks_distance",),
    guidance=Guidance(
        "Layers by the Kolmogorov-Smirnov distance D of their fit.",
        "small D, to the left of the dashed line.",
        "large D: no power law, so no verdict from α; not the same as under-trained.",
    ),
)
def distance_hist(view: ChartView) -> Any:
    """Histogram of D."""
    return metric_histogram(view, Axis("ks_distance", "D", line=POOR_FIT), low=0.0)


@chart(
    "D_by_layer",
    title="Fit quality along depth",
    needs=("ks_distance",),
    guidance=Guidance(
        "D of every layer along depth, by role; small block numbers are near the data.",
        "small and even along depth.",
        "blocks or roles that stay above the dashed line: their α has no verdict.",
    ),
)
def distance_by_layer(view: ChartView) -> Any:
    """D along depth, by role."""
    return along_depth(view, Axis("ks_distance", "D", zero=True, line=POOR_FIT))


@chart(
    "correlation_flow",
    title="Correlation flow: α along depth",
    needs=("alpha", "ks_distance"),
    guidance=Guidance(
        "α ± its standard error along depth, by role; small block numbers are near the data.",
        "a smooth line between 2 and 4 from the data to the labels.",
        "a climb above 6: information stops flowing there; sharp jumps between neighbouring blocks.",
        "Compare blocks within a role; roles differ in α without being better or worse. " + _HOLLOW,
    ),
)
def correlation_flow(view: ChartView) -> Any:
    """α along depth, by role, with error bars and bands."""
    return along_depth(view, Axis("alpha", ALPHA, log=True), sigma="alpha_sigma", banded=True)


@chart(
    "hill_by_layer",
    title="The largest 10 % against noise",
    needs=("alpha_hill", "alpha_hill_baseline"),
    guidance=Guidance(
        "α of the largest eigenvalues (Hill) along depth; dashed grey: Gaussian noise of the same shape.",
        "well below the noise: the layer has learned a heavy tail.",
        "at the noise: the layer looks untrained.",
        "The distance to noise carries from shape to shape; a fixed threshold of α does not.",
    ),
)
def hill_by_layer(view: ChartView) -> Any:
    """Hill's α along depth, by role, with the Gaussian baseline of each shape."""
    return along_depth(
        view, Axis("alpha_hill", "α Hill (log scale)", log=True), sigma="alpha_hill_sigma", noise="alpha_hill_baseline"
    )
