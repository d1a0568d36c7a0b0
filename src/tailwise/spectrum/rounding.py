"""What rounding to the stored type leaves in a spectrum: no direction below it can be told from zero.

A float with unit roundoff u errs by 0.425·u·|w| (root mean square over mantissas, evenly spread in the logarithm),
nearly independently from entry to entry. As a matrix that noise has singular values up to
0.425·u·‖W‖_F·(1/√m + 1/√n) where rows are of one size (Marchenko & Pastur 1967), and moves those of W by no more. Rows
of a matrix of r directions differ in size: the largest of m has 1 + 2√(ln m/r) + 2·ln m/r times the mean square.
"""

from __future__ import annotations

import math
import re

from tailwise.spectrum.spectrum import Spectrum

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
    found = _BITS.search(code)
    return _CODES / 2.0 ** int(found[1]) if found else _DOUBLE


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
