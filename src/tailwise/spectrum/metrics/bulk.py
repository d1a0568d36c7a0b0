"""The bulk: the part of the spectrum that looks like noise, and what stands out of it."""

from __future__ import annotations

from tailwise.spectrum.marchenko_pastur import Bulk
from tailwise.spectrum.metrics.metric import metric
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
