"""Model-level numbers of one audit: what `compare` subtracts and `rank` orders by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from tailwise.audits.audit import Audit, LayerRow

#: The band that HT-SR reads as well fitted, and the wider one over which a mean of alpha is taken.
WELL_FIT = (2.0, 4.0)
FITTED = (2.0, 6.0)

#: Name → what it is; every one leaves degenerate rows out.
SUMMARIES: Mapping[str, str] = {
    "layers": "number of measured matrices",
    "mean_alpha": "mean of alpha",
    "mean_alpha_2_6": "mean of alpha over the layers with 2 ≤ alpha ≤ 6",
    "layers_2_6": "number of layers that this mean stands on",
    "share_2_4": "share of the layers with 2 ≤ alpha ≤ 4",
    "mean_alpha_weighted": "mean of alpha · log₁₀ λ_max (α̂)",
    "mean_alpha_hill": "mean of alpha_hill",
    "mean_log_alpha_norm": "mean of log_alpha_norm",
    "mean_log_norm": "mean of log_norm",
    "mean_log_spectral_norm": "mean of log_spectral_norm",
    "mean_stable_rank": "mean of stable_rank",
    "mean_effective_rank": "mean of effective_rank",
    "mean_num_traps": "mean of num_traps; needs `--randomize`",
    "mean_one_minus_rd": "mean of 1 − RD; needs `--randomize`",
}


def model_numbers(audit: Audit) -> dict[str, float | None]:
    """Every number of `SUMMARIES`; None where no layer has what it takes."""
    rows = [layer.row for layer in audit if layer.row.status != "DEGENERATE"]
    alphas = _values(rows, "alpha")
    numbers: dict[str, float | None] = {
        "layers": float(len(audit)),
        "mean_alpha": _mean(alphas),
        "mean_alpha_2_6": _mean(_within(alphas, FITTED)),
        "layers_2_6": float(len(_within(alphas, FITTED))) if alphas else None,
        "share_2_4": len(_within(alphas, WELL_FIT)) / len(alphas) if alphas else None,
    }
    for name in SUMMARIES:
        if name not in numbers:
            numbers[name] = _mean(_values(rows, name.removeprefix("mean_")))
    return numbers


def _values(rows: Iterable[LayerRow], metric: str) -> list[float]:
    found = [row.metrics.get(metric) for row in rows if metric not in row.degenerate]
    return [value for value in found if value is not None]


def _within(values: list[float], band: tuple[float, float]) -> list[float]:
    return [value for value in values if band[0] <= value <= band[1]]


def _mean(values: list[float]) -> float | None:
    return sum(values) / len(values) if values else None
