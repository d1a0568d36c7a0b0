"""The table of `tailwise.spectrum.trust`: how far from its fit a true power law lies, by the size of its tail.

For each k, `DRAWS` samples of k Pareto values (the smallest is λ_min), α by maximum likelihood, and D as an audit has
it; 95 % of them lie below the value that is printed, times √k. α does not matter: it scales the logarithms alone.

    python benchmarks/trusted_fits.py          # prints the table, a minute
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

SIZES = (5, 6, 8, 10, 12, 15, 20, 30, 50, 75, 100, 150, 200, 300, 500, 1000, 2000)
DRAWS = 40_000
SEED = 20260729


def distances(k: int, draws: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """D of `draws` samples of k values, (draws,)."""
    logs = np.sort(rng.standard_exponential((draws, k)), axis=1)
    logs -= logs[:, :1]  # ln(λ/λ_min)
    slope = k / logs.sum(axis=1, keepdims=True)  # α − 1
    fitted = -np.expm1(-slope * logs)
    found: NDArray[np.float64] = np.abs(fitted - np.arange(k) / k).max(axis=1)
    return found


def quantile(k: int, share: float = 0.95, draws: int = DRAWS) -> float:
    """√k times the D that `share` of true power laws with k values in the tail do not exceed."""
    rng = np.random.default_rng([SEED, k])
    parts, left = [], draws
    while left:
        size = min(left, max(1, 2_000_000 // k))
        parts.append(distances(k, size, rng))
        left -= size
    return float(np.sqrt(k) * np.quantile(np.concatenate(parts), share))


def main() -> None:
    """Print the table as it stands in the module."""
    for k in SIZES:
        print(f"    {k}: {quantile(k):.3f},", flush=True)


if __name__ == "__main__":
    main()
