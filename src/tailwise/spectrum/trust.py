"""When a fitted exponent may be read as one: the only notion of it, which every judgement uses.

A fit is trusted where its tail has at least `N_MIN` values, lies as near to its power law as 95 % of true power laws
with a tail of that size do, and is heavier than that of noise of the matrix's shape.
"""

from __future__ import annotations

import math
import re

import numpy as np
from numpy.typing import NDArray

from tailwise.spectrum.spectrum import Spectrum

#: Fewer values say little: at ten, the standard error is a third of α − 1. A heuristic.
N_MIN = 10
#: A tail with a larger share of the eigenvalues is the bulk, and its exponent describes that. A heuristic.
LARGEST_SHARE = 0.5
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


def poor_tails(tails: NDArray[np.float64], distances: NDArray[np.float64]) -> NDArray[np.bool_]:
    """`doubt_of_tail` of many tails, as truth: k and D of each, NaN where it is not known or D says nothing."""
    known = np.where(np.isfinite(tails), np.maximum(tails, 1.0), np.inf)
    bounds = np.interp(np.log(known), _LOG_K, _SCALED) / np.sqrt(known)
    poor: NDArray[np.bool_] = (tails < N_MIN - 0.5) | (np.isfinite(tails) & (distances > bounds))
    return poor


def is_noise(z: float | None, ratio: float | None, m: int) -> bool:
    """Whether the largest eigenvalues are no heavier-tailed than those of noise.

    `z`: standard deviations of `alpha_hill` below noise; `ratio`: `alpha_hill` over that of noise; m: the short side.
    What is not known is no reason.
    """
    if m > _FEW_DRAWS:
        return ratio is not None and ratio > _SHARE_OF_NOISE
    return z is not None and z < NOISE_SDS


#: Unit roundoff, half the distance of 1 to the next number.
UNITS = {
    "F64": 2.0**-53, "F32": 2.0**-24, "F16": 2.0**-11, "BF16": 2.0**-8, "F8_E4M3": 2.0**-4, "F8_E5M2": 2.0**-3,
}  # fmt: skip
#: Of codes of b bits in groups: half a step is amax/2^b, and the largest of a group about 2.5 times its rms entry.
_CODES = 2.5
RMS = 2 * math.sqrt(1 / 12 * 0.375 / math.log(2))  # of the error of a float, in u·|w|
_BITS = re.compile(r"(?:^|_)(?:I?Q|TQ|U?INT|NF|MXFP|NVFP|FP|[IU](?=8))(\d)")
_FLOAT8 = re.compile(r"(?:^|_)(?:FLOAT|FP|F)8")
_DOUBLE = UNITS["F64"]
#: What computing a weight leaves, in roundings: measured 1 to 6 of float32 products of 8 to 256 terms, and 9 to 17 of
#: float32's QR of 128 to 1024 columns. Noise of full rank stays a hundredfold above 32.
_COMPUTED = 32.0


def unit_of(dtype: str) -> float:
    """u of a stored type, by its code in an audit; that of float64 where it is not known."""
    code = dtype.upper()
    if code in UNITS or _FLOAT8.search(code):
        return UNITS.get(code, UNITS["F8_E4M3"])
    match = _BITS.search(code)
    return _CODES / 2.0 ** int(match[1]) if match else _DOUBLE


_CASTS = {"fp64": "F64", "fp32": "F32", "fp16": "F16", "bf16": "BF16"}


def unit_of_format(name: str) -> float:
    """u of a number format, by its name: `bf16`, `int4-g128`, `q4_0`."""
    return unit_of(_CASTS.get(name, name))


def edge(spectrum: Spectrum, unit: float) -> float:
    """The largest singular value of the rounding in W: σ up to it are noise."""
    total, top = float(spectrum.eigenvalues.sum()) / spectrum.slices, float(spectrum.eigenvalues[-1])
    if top == 0.0:
        return 0.0
    share = math.log(spectrum.m) * top / total  # ln m over the stable rank
    uneven = math.sqrt(1.0 + 2.0 * math.sqrt(share) + 2.0 * share)
    sides = 1.0 / math.sqrt(spectrum.m) + 1.0 / math.sqrt(spectrum.n)
    return unit * math.sqrt(total) * min(1.0, RMS * uneven * sides)


def resolved(spectrum: Spectrum, unit: float) -> float:
    """The largest singular value that is noise in W: of rounding to the stored type, or of what computed W before.

    Products, factorisations and merges are computed in float32, or in a finer type where it is stored in one, and their
    errors are those of many roundings.
    """
    return max(edge(spectrum, unit), _COMPUTED * edge(spectrum, min(unit, UNITS["F32"])))
