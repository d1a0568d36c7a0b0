"""How sure a mean over windows is, and a difference of two.

Tokens are not resampled: the losses of neighbours go together, and an interval over tokens would be too narrow. So do
the losses of neighbouring windows of one document. Where windows in their order are correlated, runs of them are
averaged until the averages are not (`independent`), and these are resampled: the method of batch means. For a
correlation of 0.8 between neighbours, as measured on source code, intervals over 200 single windows held the mean in
48 of 100 simulations, and over runs in 93; without correlation both hold it in 95.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tailwise.models.evaluation.scores import ENOUGH, Interval

#: Below this many values no interval is given: resamples of fewer have too few different means.
MIN_VALUES = 6
RESAMPLES = 9999
#: The least two-sided p that random flips can give, since the data themselves count as one of them.
P_FLOOR = 2 / (RESAMPLES + 1)
LEVEL = 0.95
#: Runs are not made so long that fewer than this are left.
MIN_RUNS = 8
#: More are averaged, neighbours together: an interval gets no better by more, and resampling costs as many.
MOST_RUNS = 1000
_BATCH = 500  # resamples at once: bounds the memory at 500 × n values

Values = NDArray[np.float64]


def independent(values: Values) -> Values:
    """Means of consecutive runs of `values`, (n,) → (runs,): the shortest runs, by doubling, that look independent,
    of which there are at most `MOST_RUNS`.

    The correlation of neighbours must not exceed one standard error, 1/√runs; a lower bar than a test's, since runs
    that are too short cost more than runs that are too long.
    """
    size = -(-len(values) // MOST_RUNS) or 1
    runs = values if size == 1 else _batches(values, size)
    while len(runs) >= 2 * MIN_RUNS and _correlation(runs) > 1 / math.sqrt(len(runs)):
        size *= 2
        runs = _batches(values, size)
    return runs


def _batches(values: Values, size: int) -> Values:
    """Means of neighbours, `size` or somewhat more of them each."""
    return np.array([part.mean() for part in np.array_split(values, len(values) // size)])


def _correlation(values: Values) -> float:
    """Of each value with the next."""
    apart = values - values.mean()
    spread = float(apart @ apart)
    return float(apart[1:] @ apart[:-1]) / spread if spread > 0 else 0.0


def mean_interval(values: Values, *, seed: int = 0) -> Interval | None:
    """95 % interval of the mean of `values`, (n,) in their order, by the studentised bootstrap over runs.

    Each resample gives t* = (mean* − mean)/se*; the interval is mean − t*₀.₉₇₅·se … mean − t*₀.₀₂₅·se (Efron &
    Tibshirani 1993, §12.5). Losses of windows are skewed and few, and there it covers best: of ten windows drawn
    from real losses, 92 % of the intervals held the mean, against 88 % by percentiles and 87 % by BCa. None for
    fewer than `MIN_VALUES` values.
    """
    if len(values) < MIN_VALUES or not np.isfinite(values).all():
        return None
    runs = independent(values)
    mean, error = float(values.mean()), float(runs.std(ddof=1)) / math.sqrt(len(runs))
    if error <= abs(mean) * 1e-15:
        return mean, mean
    t = _t_values(runs, np.random.default_rng(seed))
    low, high = np.quantile(t, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return mean - float(high) * error, mean - float(low) * error


def _t_values(values: Values, rng: np.random.Generator) -> Values:
    n, mean, ends = len(values), values.mean(), []
    for start in range(0, RESAMPLES, _BATCH):
        drawn = values[rng.integers(0, n, (min(_BATCH, RESAMPLES - start), n))]
        errors = drawn.std(axis=1, ddof=1) / math.sqrt(n)
        varied = errors > 0  # a resample of one value n times has no t
        ends.append((drawn.mean(axis=1)[varied] - mean) / errors[varied])
    return np.concatenate(ends)


def ratio_interval(above: Values, below: Values) -> Interval | None:
    """95 % interval of mean(above) / mean(below), (n,) each and paired in their order.

    Fieller's (1954): every ratio r for which a t test over runs does not tell mean(above − r·below) from 0. None for
    fewer than `MIN_VALUES` pairs, and where mean(below) is not told from 0, so that no ratio could be left out.
    """
    from scipy.stats import t

    if len(above) < MIN_VALUES or not (np.isfinite(above).all() and np.isfinite(below).all()):
        return None
    n = min(len(independent(values)) for values in (above, below))
    pairs = [[part.mean() for part in np.array_split(values, n)] for values in (above, below)]
    cov = np.cov(pairs) * float(t.ppf((1 + LEVEL) / 2, n - 1)) ** 2 / n
    over, under = float(above.mean()), float(below.mean())
    a, b, c = under**2 - cov[1, 1], over * under - cov[0, 1], over**2 - cov[0, 0]
    if not a > 0:
        return None
    half = math.sqrt(max(0.0, b * b - a * c))
    return (float(b) - half) / float(a), (float(b) + half) / float(a)


def sign_flip_p(differences: Values, *, seed: int = 0) -> float | None:
    """Two-sided p that paired `differences`, (n,) in their order, have mean zero: the signs of runs are flipped.

    None without a difference. Exact up to 13 runs, else over 9,999 random flips, where p is at least 2/10,000
    (Fisher's randomisation test, `scipy.stats.permutation_test`).
    """
    from scipy.stats import permutation_test

    if len(differences) == 0 or not np.isfinite(differences).all():
        return None
    if not differences.any():
        return 1.0
    rng = np.random.default_rng(seed)
    kind = {"permutation_type": "samples", "n_resamples": RESAMPLES, "batch": _BATCH, "vectorized": True}
    return float(permutation_test((independent(differences),), _mean, rng=rng, **kind).pvalue)


def _mean(values: Values, axis: int = -1) -> Values:
    return np.asarray(values.mean(axis=axis))


def few_windows(n: int) -> str:
    """What a number of windows is too few for; "" where it is enough."""
    if n < MIN_VALUES:
        return (
            f"only {n} windows, too few to tell a difference from chance: {MIN_VALUES} or more can, "
            f"{ENOUGH} or more should"
        )
    if n < ENOUGH:
        return (
            f"{n} windows are few: where neighbours are alike, intervals are too narrow and tests too sure; "
            f"give {ENOUGH} or more, of many documents"
        )
    return ""


def wilson(successes: int, n: int, *, level: float = LEVEL) -> Interval:
    """Interval of a proportion (Wilson 1927)."""
    from scipy.stats import norm

    z = float(norm.ppf((1 + level) / 2))
    share, denominator = successes / n, 1 + z * z / n
    centre = (share + z * z / (2 * n)) / denominator
    half = z / denominator * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, centre - half), min(1.0, centre + half)
