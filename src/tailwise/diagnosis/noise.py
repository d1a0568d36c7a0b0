"""Whether a matrix can be told from Gaussian noise of its shape."""

from __future__ import annotations

from tailwise.audits.audit import LayerRow
from tailwise.diagnosis.case import Case, value

#: What the judgement needs.
METRICS = ("alpha_hill", "alpha_hill_z", "singular_entropy_z", "num_spikes", "mp_distance")


def noise_like(case: Case, row: LayerRow) -> bool:
    """Tail, evenness, spikes and bulk are all those of noise."""
    return (
        abs(value(row, "alpha_hill_z")) <= case.limit("noise_z")
        and abs(value(row, "singular_entropy_z")) <= case.limit("noise_z")
        and value(row, "num_spikes") <= case.limit("noise_spikes")
        and value(row, "mp_distance") <= case.limit("noise_mp_distance")
    )


def learned(case: Case, *metrics: str) -> list[LayerRow]:
    """The rows with these metrics that are not noise."""
    return [row for row in case.judged(*METRICS, *metrics) if not noise_like(case, row)]
