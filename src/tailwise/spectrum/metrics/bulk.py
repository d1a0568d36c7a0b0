"""The bulk: the part of the spectrum that looks like noise, and what stands out of it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from tailwise.spectrum.marchenko_pastur import Bulk
from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

_MP = "Marchenko & Pastur 1967; σ by the median as in Gavish & Donoho 2014"
_NAN = float("nan")


@metric("σ with median(λ ≤ edge) = n·σ²·median(MP)", source=_MP, unit="weight")
def sigma_mp(bulk: Bulk | None) -> float:
    """Standard deviation of the weights in the noise bulk."""
    return _NAN if bulk is None else bulk.sigma


@metric("σ²(1 + 1/√Q)²·n", source=_MP, unit="λ")
def lambda_plus(bulk: Bulk | None) -> float:
    """Upper edge of the noise bulk."""
    return _NAN if bulk is None else bulk.lambda_plus


@metric("# λ > λ₊ + Tracy-Widom margin (99 %)", source="Johnstone 2001, Annals of Statistics 29:295", unit="count")
def num_spikes(bulk: Bulk | None) -> float:
    """Number of eigenvalues that stand out of the noise bulk."""
    return _NAN if bulk is None else float(bulk.num_spikes)


@metric("λ₊ / λ_max", source="Martin & Mahoney 2021, JMLR 22:165")
def mp_softrank(spectrum: Spectrum, bulk: Bulk | None) -> float:
    """Share of the largest eigenvalue that noise alone would reach; above 1, all is noise."""
    return _NAN if bulk is None else bulk.lambda_plus / float(spectrum.eigenvalues[-1])


@metric("sup |F_bulk − F_MP|", source=_MP)
def mp_distance(bulk: Bulk | None) -> float:
    """Kolmogorov-Smirnov distance of the bulk from the Marchenko-Pastur law; large: there is no such bulk."""
    return _NAN if bulk is None else bulk.ks_distance


_ERG = "Martin & Hinrichs 2025 (SETOL), trace-log condition; WeightWatcher 0.7 (detX)"


@metric("smallest k with Π of the k largest λ·m/Σλ below 1", source=_ERG, unit="count")
def detX_num(spectrum: Spectrum) -> float:  # noqa: N802 - WeightWatcher's name
    """Number of eigenvalues in the volume-preserving tail."""
    return float(_crossing(spectrum))


@metric("λ at detX_num", source=_ERG, unit="λ")
def detX_val(spectrum: Spectrum) -> float:  # noqa: N802
    """Eigenvalue at which the product of the largest falls below 1, unrescaled."""
    return float(spectrum.eigenvalues[-_crossing(spectrum)])


@metric("# λ ≥ λ_min − detX_num", source=_ERG, unit="count")
def detX_delta(spectrum: Spectrum, fitted: Spectrum, tail: TailFit) -> float:  # noqa: N802
    """Tail of the fit less the volume-preserving tail; near 0 is critical balance."""
    if not tail.ok or fitted is not spectrum:
        return float("nan")
    return float((spectrum.eigenvalues >= tail.lambda_min).sum()) - _crossing(spectrum)


@lru_cache(maxsize=64)
def _crossing(spectrum: Spectrum) -> int:
    values = spectrum.eigenvalues[::-1]
    count, total = len(values), float(values.sum())
    if total == 0:
        return count
    # In logarithms: the plain product overflows from about 3072 eigenvalues on.
    with np.errstate(divide="ignore"):
        logs = np.cumsum(np.log(values * (count / total)))
    # Below 0 by more than the sum can err: a flat spectrum stays at 0 all the way.
    below = np.flatnonzero(logs < -1e-10)
    return int(below[0]) + 1 if len(below) else count
