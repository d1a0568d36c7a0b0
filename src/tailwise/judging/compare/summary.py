"""Model-level numbers of one audit: what `compare` subtracts and `rank` orders by."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tailwise.audits.audit import Audit
from tailwise.audits.trusted import estimator_of, is_of_bulk, usable, value_of

#: Statuses of matrices that should have numbers and do not.
BROKEN = ("NOT_FINITE", "UNREADABLE", "FAILED", "UNSUPPORTED")
#: Metrics whose changes have an error to be held against.
WITH_ERROR = ("alpha", "alpha_hill")
#: The band that HT-SR reads as well fitted, and the wider one over which a mean of alpha is taken.
WELL_FIT = (2.0, 4.0)
FITTED = (2.0, 6.0)

#: Name → what it is; every one leaves degenerate rows out, and those of alpha all fits that are not trusted.
SUMMARIES: Mapping[str, str] = {
    "layers": "number of measured matrices",
    "unmeasured": "number of matrices that should have numbers and have none (NaN, unreadable)",
    "trusted_fits": "number of those whose fit of alpha is trusted",
    "bulk_fits": "number of trusted fits that have more than half of the eigenvalues: alpha describes the bulk (TW502)",
    "mean_alpha": "mean of alpha over trusted fits",
    "mean_alpha_2_6": "mean of alpha over the trusted fits with 2 ≤ alpha ≤ 6",
    "layers_2_6": "number of layers that this mean stands on",
    "share_2_4": "share of the trusted fits with 2 ≤ alpha ≤ 4",
    "mean_alpha_weighted": "mean of alpha · log₁₀ λ_max (α̂) over trusted fits",
    "mean_alpha_hill": "mean of alpha_hill",
    "mean_log_alpha_norm": "mean of log_alpha_norm over trusted fits",
    "mean_log_norm": "mean of log_norm",
    "mean_log_spectral_norm": "mean of log_spectral_norm",
    "mean_stable_rank": "mean of stable_rank",
    "mean_effective_rank": "mean of effective_rank",
    "mean_num_traps": "mean of num_traps; needs `--randomize`",
    "mean_one_minus_rd": "mean of 1 − RD; needs `--randomize`",
    "mean_alpha_all": "mean of alpha over all fits, as publications have it",
    "mean_alpha_weighted_all": "mean of α̂ over all fits, as publications have it",
    "mean_log_alpha_norm_all": "mean of log_alpha_norm over all fits, as publications have it",
}


def model_numbers(audit: Audit, min_evals: int | None = None) -> dict[str, float | None]:
    """Every number of `SUMMARIES`; None where no layer has what it takes.

    `min_evals`: the fewest eigenvalues of a matrix whose fit may be trusted, in place of 50.
    """
    rows, estimator = [layer.row for layer in audit if layer.row.status != "DEGENERATE"], estimator_of(audit)

    def mean(metric: str) -> float | None:
        return _mean([usable(row, metric, estimator, min_evals) for row in rows])

    trusted = [row for row in rows if usable(row, "alpha", estimator, min_evals) is not None]
    alphas = [row.metrics["alpha"] or 0.0 for row in trusted]
    fits = any("alpha" in layer.row.metrics for layer in audit)
    numbers: dict[str, float | None] = {
        "layers": float(len(audit)),
        "unmeasured": float(sum(row.status in BROKEN for row in audit.unmeasured)),
        "trusted_fits": float(len(alphas)) if fits else None,
        "bulk_fits": float(sum(is_of_bulk(row, estimator) for row in trusted)) if fits else None,
        "mean_alpha_2_6": _mean(_within(alphas, FITTED)),
        "layers_2_6": float(len(_within(alphas, FITTED))) if alphas else None,
        "share_2_4": len(_within(alphas, WELL_FIT)) / len(alphas) if alphas else None,
    }
    for name in SUMMARIES:
        if name not in numbers:
            metric = name.removeprefix("mean_")
            every = metric.removesuffix("_all") if metric.endswith("_all") else None
            numbers[name] = mean(metric) if every is None else _mean([value_of(row, every) for row in rows])
    return {name: numbers[name] for name in SUMMARIES}


def _within(values: list[float], band: tuple[float, float]) -> list[float]:
    return [value for value in values if band[0] <= value <= band[1]]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None
