"""When a fitted exponent may be read as one: the only notion of it, which every judgement uses.

A fit is trusted where its tail has at least `N_MIN` values, lies as near to its power law as 95 % of true power laws
with a tail of that size do, and is heavier than that of noise of the matrix's shape.
"""

from __future__ import annotations

import math

import numpy as np

#: Fewer values say little: at ten, the standard error is a third of α − 1. A heuristic.
N_MIN = 10
#: Standard deviations of `alpha_hill` below that of noise from which on a tail is heavier than noise.
NOISE_SDS = 3.0
#: Shapes above this have too few noise matrices for a standard deviation: a share of the noise's exponent counts then.
_FEW_DRAWS = 4096
_SHARE_OF_NOISE = 0.95
#: Estimators that choose λ_min by D, and so claim a power law. The others take a fixed part of the spectrum.
SEARCHED = frozenset({"ks", "ks_clip", "ks_truncated", "peak"})

#: k → √k times the D that 95 % of power laws with k values in the tail do not exceed: `benchmarks/trusted_fits.py`.
_QUANTILES = {
    5: 0.817, 6: 0.847, 8: 0.884, 10: 0.896, 12: 0.913, 15: 0.930, 20: 0.949, 30: 0.984, 50: 1.004, 75: 1.017,
    100: 1.028, 150: 1.038, 200: 1.049, 300: 1.055, 500: 1.063, 1000: 1.070, 2000: 1.081,
}  # fmt: skip
_LOG_K = np.log(list(_QUANTILES))
_SCALED = np.array(list(_QUANTILES.values()))


def largest_distance(k: float) -> float:
    """The 95 % quantile of D (one-sided, as in an audit) of a fitted power law with k values in its tail."""
    return float(np.interp(math.log(max(k, 1.0)), _LOG_K, _SCALED)) / math.sqrt(max(k, 1.0))


def doubt_of_tail(k: float, distance: float | None, *, searched: bool) -> str:
    """Why a tail of k values at distance D is not trusted; "" where it is. A D that is not known is no reason."""
    if k < N_MIN - 0.5:
        return f"its tail has {k:.0f} value{'' if round(k) == 1 else 's'}, fewer than {N_MIN}"
    bound = largest_distance(k)
    if searched and distance is not None and distance > bound:
        return f"D {distance:.3f} is above {bound:.3f}, which 95 % of power laws with {k:.0f} values do not exceed"
    return ""


def is_noise(z: float | None, ratio: float | None, m: int) -> bool:
    """Whether the largest eigenvalues are no heavier-tailed than those of noise.

    `z`: standard deviations of `alpha_hill` below noise; `ratio`: `alpha_hill` over that of noise; m: the short side.
    What is not known is no reason.
    """
    if m > _FEW_DRAWS:
        return ratio is not None and ratio > _SHARE_OF_NOISE
    return z is not None and z < NOISE_SDS
