"""Which numbers of an audit may be computed with: no placeholder, and no exponent of a fit that is not trusted."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tailwise.audits.rows import LayerRow
from tailwise.spectrum.trust import LARGEST_SHARE, SEARCHED, doubt_of_tail, is_noise

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit

#: Metrics that are the exponent of the fitted tail, or made of it.
OF_FIT = frozenset({"alpha", "alpha_weighted", "log_alpha_norm"})
_EXPONENTS = ("alpha", "alpha_hill")


def value_of(row: LayerRow, metric: str) -> float | None:
    """A number to compute with: None where there is none, or only the placeholder of a tail without spread."""
    hidden = metric in row.degenerate or (row.status == "DEGENERATE" and metric in _EXPONENTS)
    return None if hidden or not row.measured else row.metrics.get(metric)


def estimator_of(audit: Audit) -> str:
    """The estimator of alpha."""
    return str(audit.provenance.recipe.get("estimator", "ks"))


def doubt(row: LayerRow, estimator: str = "ks", least: int | None = None) -> str:
    """Why the fit of `alpha` is not trusted; "" where it is. See `spectrum.trust`.

    `least` is the number of eigenvalues from which on a spectrum is taken, in place of the 50 that the status means.
    What an audit did not measure is no reason.
    """
    if said := doubt_of_fit(row, estimator, least):
        return said
    if "alpha_hill" in row.degenerate:
        return "its largest eigenvalues have no spread"
    hill, noise = value_of(row, "alpha_hill"), row.metrics.get("alpha_hill_baseline")
    ratio = hill / noise if hill is not None and noise else None
    if is_noise(row.metrics.get("alpha_hill_z"), ratio, min(row.rows, row.cols)):
        return "its largest eigenvalues are no heavier-tailed than noise of its shape"
    return ""


def doubt_of_fit(row: LayerRow, estimator: str = "ks", least: int | None = None) -> str:
    """As `doubt`, whether or not the tail is that of noise: a change from noise to a tail is one."""
    if value_of(row, "alpha") is None:
        return "it has no exponent" if row.measured else "it was not measured"
    count = min(row.rows, row.cols) * row.slices
    if least is not None and count < least:
        return f"{count} eigenvalues are fewer than {least}"
    if row.status != "OK" and (least is None or row.status != "FEW_EIGENVALUES"):
        return "it has too few eigenvalues"
    alpha, sigma = row.metrics["alpha"], row.metrics.get("alpha_sigma")
    if alpha is not None and sigma:
        ratio = (alpha - 1.0) / sigma
        k = ratio * ratio  # not a power, which raises where a file's numbers leave the range of floats
        searched = estimator.removeprefix("farms:") in SEARCHED
        if said := doubt_of_tail(k, row.metrics.get("ks_distance"), searched=searched):
            return said
    return ""


def is_of_bulk(row: LayerRow, estimator: str = "ks") -> bool:
    """Whether the fitted tail has more than half of the eigenvalues, so that alpha describes the bulk (TW502)."""
    tail, count = value_of(row, "num_pl_spikes"), min(row.rows, row.cols) * row.slices
    return estimator == "ks" and tail is not None and tail > LARGEST_SHARE * count


def usable(row: LayerRow, metric: str, estimator: str = "ks", least: int | None = None) -> float | None:
    """A number for means, medians, ranks and verdicts: `value_of`, and of an exponent only where its fit is trusted."""
    return None if metric in OF_FIT and doubt(row, estimator, least) else value_of(row, metric)


def usable_values(audit: Audit, metric: str, rows: Iterable[LayerRow] | None = None) -> list[float]:
    """`usable` of the rows that have it, of a whole audit or of these rows."""
    estimator = estimator_of(audit)
    chosen = audit.rows if rows is None else rows
    values = [usable(row, metric, estimator) for row in chosen]
    return [value for value in values if value is not None]


def left_out(audit: Audit) -> tuple[int, int]:
    """(fits of alpha that are not trusted, fits in all), degenerate tails among both."""
    estimator = estimator_of(audit)
    fits = [row for row in audit.rows if row.measured and "alpha" in row.metrics]
    return sum(bool(doubt(row, estimator)) for row in fits), len(fits)


def mean_alpha_words(audit: Audit) -> str:
    """`3.41 (51 of 58 fits trusted)`, or `no verdict (0 of 58 fits trusted)`."""
    doubted, fits = left_out(audit)
    if not fits:
        return "–"
    values = usable_values(audit, "alpha", [row for row in audit.rows if row.status != "DEGENERATE"])
    mean = f"{sum(values) / len(values):.2f}" if values else "no verdict"
    return f"{mean} ({fits - doubted} of {fits} fits trusted)"


def bulk_words(audit: Audit) -> str:
    """`α of 44 of 57 trusted fits describes …` where those of the bulk are most; "" otherwise."""
    estimator = estimator_of(audit)
    fits = [row for row in audit.rows if usable(row, "alpha", estimator) is not None]
    bulk = sum(is_of_bulk(row, estimator) for row in fits)
    if 2 * bulk <= len(fits):
        return ""
    return (
        f"α of {bulk} of {len(fits)} trusted fits describes the bulk of the spectrum rather than a tail (TW502), so "
        "the bands of α (“< 2 over-trained” …) say little about them."
    )


def left_out_words(audit: Audit) -> str:
    """`α of 7 of 58 fits is not trusted and left out`; "" where all are."""
    doubted, fits = left_out(audit)
    return f"α of {doubted} of {fits} fits is not trusted, and left out of means and medians" if doubted else ""
