"""Scale, entropy and rank along depth."""

from __future__ import annotations

from typing import Any

from tailwise.report.charts.building import Axis
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.panels import along_depth
from tailwise.report.charts.view import ChartView


@chart(
    "scale_by_layer",
    title="Scale along depth",
    needs=("log_spectral_norm",),
    guidance=Guidance(
        "log10 λmax of every layer along depth, by role; small block numbers are near the data.",
        "a smooth line within each role.",
        "sharp jumps: blow-ups, which hurt stability, quantization and merging.",
    ),
)
def scale_by_layer(view: ChartView) -> Any:
    """log₁₀ of the largest eigenvalue along depth, by role."""
    return along_depth(view, Axis("log_spectral_norm", "log10 λmax"))


@chart(
    "entropy_by_layer",
    title="Singular entropy along depth",
    needs=("singular_entropy",),
    guidance=Guidance(
        "Divergence of the singular values from a flat spectrum, in nats; dashed grey: Gaussian noise of the shape.",
        "above the noise, smooth along depth.",
        "at the noise: nothing learned; far above the neighbours: the layer collapses onto few directions.",
        "It depends on the shape: compare within a role.",
    ),
)
def entropy_by_layer(view: ChartView) -> Any:
    """Singular entropy along depth, by role, with the noise of each shape."""
    return along_depth(view, Axis("singular_entropy", "entropy (nats)", zero=True), noise="singular_entropy_baseline")


@chart(
    "stable_rank_by_layer",
    title="Stable rank along depth",
    needs=("stable_rank",),
    guidance=Guidance(
        "Σλ / λ_max of every layer along depth: how many directions carry its norm.",
        "smooth along depth.",
        "near 1: one direction carries everything (rank collapse).",
        "It grows with the size of the matrix: compare within a role.",
    ),
)
def stable_rank_by_layer(view: ChartView) -> Any:
    """Stable rank along depth, by role."""
    return along_depth(view, Axis("stable_rank", "stable rank", zero=True))


@chart(
    "effective_rank_by_layer",
    title="Effective rank along depth",
    needs=("effective_rank",),
    guidance=Guidance(
        "Exponential of the entropy of the singular values, along depth: how many directions the matrix uses.",
        "smooth along depth.",
        "a sharp loss against its neighbours: the layer collapses onto few directions.",
        "It grows with the size of the matrix: compare within a role.",
    ),
)
def effective_rank_by_layer(view: ChartView) -> Any:
    """Effective rank along depth, by role."""
    return along_depth(view, Axis("effective_rank", "effective rank", zero=True))
