"""Whether a matrix can be told from Gaussian noise of its shape."""

from __future__ import annotations

import math
from functools import lru_cache

from scipy import stats

from tailwise.audits.rows import LayerRow
from tailwise.judging.diagnosis.case import Case, value
from tailwise.judging.diagnosis.wording import evals

#: What the judgement needs.
METRICS = ("alpha_hill", "alpha_hill_z", "singular_entropy_z", "num_spikes", "mp_distance")


def bound_on_z(case: Case, row: LayerRow) -> float:
    """The z that has the chance of `noise_z` normal standard deviations.

    The baseline's mean and sd come from a few draws, so z follows Student's t, which is wide for large matrices.
    """
    # As `metrics.facts.gaussian_baseline` draws them.
    draws = max(2, round(case.draws * min(1.0, 1024 / min(row.rows, row.cols))))
    return _student(case.limit("noise_z"), draws)


@lru_cache(maxsize=64)
def _student(sds: float, draws: int) -> float:
    return float(stats.t.isf(stats.norm.sf(sds), draws - 1)) * math.sqrt(1 + 1 / draws)


def noise_like(case: Case, row: LayerRow) -> bool:
    """Tail, evenness, spikes and bulk are all those of noise."""
    return (
        abs(value(row, "alpha_hill_z")) <= bound_on_z(case, row)
        and abs(value(row, "singular_entropy_z")) <= bound_on_z(case, row)
        and value(row, "num_spikes") <= case.limit("noise_spikes")
        and value(row, "mp_distance") <= case.limit("noise_mp_distance") + 3 / evals(row)
    )


def learned(case: Case, *metrics: str) -> list[LayerRow]:
    """The rows with these metrics that are not noise."""
    return [row for row in case.judged(*METRICS, *metrics) if not noise_like(case, row)]
