"""The ERG (detX) condition: whether the fitted tail is the volume-preserving one."""

from __future__ import annotations

from typing import Any

from tailwise.report.charts.building import Axis, metric_histogram
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.panels import along_depth
from tailwise.report.charts.view import ChartView

_GOOD = "near 0, the dashed line: critical balance, the tail of the fit is the one whose volume is conserved."
_BAD = "far from 0 on either side: above, the tail is too long (over-correlated); below, too short (under-trained)."


@chart(
    "detX_hist",
    title="Critical balance (detX)",
    needs=("detX_delta", "ks_distance"),
    guidance=Guidance(
        "Layers by how many eigenvalues their tail has more than the volume-preserving one.", _GOOD, _BAD
    ),
)
def balance_hist(view: ChartView) -> Any:
    """Histogram of detX."""
    return metric_histogram(view, Axis("detX_delta", "detX (eigenvalues)", line=0.0))


@chart(
    "detX_by_layer",
    title="Critical balance along depth (detX)",
    needs=("detX_delta", "ks_distance"),
    guidance=Guidance("detX along depth, by role; small block numbers are near the data.", _GOOD, _BAD),
)
def balance_by_layer(view: ChartView) -> Any:
    """detX along depth, by role."""
    return along_depth(view, Axis("detX_delta", "detX", line=0.0))
