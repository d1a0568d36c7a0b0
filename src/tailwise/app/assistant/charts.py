"""Which chart of an audit shows a metric, and with it a finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailwise.app.assistant.answer import Link
from tailwise.app.workspace import links

#: Metric → the chart of it along depth; every other metric has the heat map.
OF_METRIC: Mapping[str, str] = {
    "alpha": "correlation_flow", "alpha_sigma": "correlation_flow", "alpha_hill": "hill_by_layer",
    "alpha_hill_baseline": "hill_by_layer", "alpha_hill_z": "hill_by_layer", "singular_entropy_z": "entropy_by_layer",
    "alpha_z": "correlation_flow", "effective_rank": "effective_rank_by_layer", "kendall_tau": "hill_by_layer",
    "num_pl_spikes": "alpha_vs_D", "ks_distance": "D_by_layer", "log_spectral_norm": "scale_by_layer",
    "singular_entropy": "entropy_by_layer", "singular_entropy_baseline": "entropy_by_layer",
    "stable_rank": "stable_rank_by_layer", "num_traps": "traps_by_layer", "rand_distance": "rd_by_layer",
    "one_minus_rd": "rd_by_layer", "detX_delta": "detX_by_layer", "detX_num": "detX_by_layer",
}  # fmt: skip


def chart_of(audit: str, metric: str) -> Link:
    """The chart of a metric."""
    name = OF_METRIC.get(metric, "heatmap")
    return Link(name, links.chart(audit, name, None if metric in OF_METRIC else metric))


def chart_for(audit: str, metrics: Sequence[str]) -> Link | None:
    """The chart of the first of some metrics that has one of its own."""
    metric_of_chart = next((metric for metric in metrics if metric in OF_METRIC), None)
    return None if metric_of_chart is None else chart_of(audit, metric_of_chart)
