"""The tail: how heavy it is, where it begins, and how well a power law describes it."""

from __future__ import annotations

from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.other_laws import TruncatedFit
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

_CLAUSET = "Clauset, Shalizi & Newman 2009, SIAM Review 51:661"
_HILL = "Hill 1975, Annals of Statistics 3:1163; the HT-SR alpha manual"
_WW = "WeightWatcher 0.7"
_NAN = float("nan")


@metric("1 + k / Σ ln(λᵢ/λ_min) over λᵢ ≥ λ_min; λ_min by the estimator (ks: smallest D)", source=_CLAUSET)
def alpha(tail: TailFit) -> float:
    """Exponent of the fitted power law."""
    return tail.alpha if tail.ok else _NAN


@metric("(α − 1)/√k", source=_CLAUSET)
def alpha_sigma(tail: TailFit) -> float:
    """Standard error of alpha."""
    return tail.sigma


@metric("2.5 % point of alpha over bootstrap resamples of the spectrum, each fitted anew", source=_CLAUSET)
def alpha_low(interval: tuple[float, float]) -> float:
    """Lower end of alpha's 95 % interval."""
    return interval[0]


@metric("97.5 % point of alpha over bootstrap resamples of the spectrum, each fitted anew", source=_CLAUSET)
def alpha_high(interval: tuple[float, float]) -> float:
    """Upper end of alpha's 95 % interval."""
    return interval[1]


@metric("smallest λ of the tail", source=_CLAUSET, unit="λ")
def lambda_min(tail: TailFit) -> float:
    """Where the fitted tail begins."""
    return tail.lambda_min


@metric("largest λ of the tail", source=_CLAUSET, unit="λ")
def lambda_max(tail: TailFit) -> float:
    """Where the fitted tail ends."""
    return tail.lambda_max


@metric("max_j |1 − (λⱼ/λ_min)^{1−α} − (j−i)/k|", source=_WW)
def ks_distance(tail: TailFit) -> float:
    """Kolmogorov-Smirnov distance of tail and fit, one-sided as WeightWatcher has it (D)."""
    return tail.ks_distance


@metric("sup |F_fit − F_empirical|", source=_CLAUSET)
def ks_distance_two_sided(tail: TailFit) -> float:
    """Kolmogorov-Smirnov distance of tail and fit, from both sides of each step."""
    return tail.ks_distance_two_sided


@metric("# λ ≥ λ_min", source=_WW, unit="count")
def num_pl_spikes(fitted: Spectrum, tail: TailFit) -> float:
    """Number of eigenvalues from the tail's beginning on (of the windows, where alpha is fitted on them)."""
    return float((fitted.eigenvalues >= tail.lambda_min).sum()) if tail.ok else _NAN


@metric("1 + k / Σ ln(λᵢ/λ_ref) over the k = max(⌊k_frac·m⌋, 2) largest", source=_HILL)
def alpha_hill(hill: TailFit) -> float:
    """Hill's exponent of the largest eigenvalues."""
    return hill.alpha


@metric("(α_hill − 1)/√k", source=_HILL)
def alpha_hill_sigma(hill: TailFit) -> float:
    """Standard error of alpha_hill."""
    return hill.sigma


@metric("number of eigenvalues used", source=_HILL, unit="count")
def alpha_hill_k(hill: TailFit) -> float:
    """Size of the tail that alpha_hill uses."""
    return float(hill.k)


@metric("α of p(λ) ∝ λ^−α e^{−Λλ}, λ ≥ λ_min of the fit", source=_CLAUSET)
def alpha_truncated(truncated: TruncatedFit | None) -> float:
    """Exponent of the exponentially truncated power law (TPL)."""
    return _NAN if truncated is None else truncated.alpha


@metric("Λ of p(λ) ∝ λ^−α e^{−Λλ}", source=_CLAUSET, unit="1/λ")
def truncation_rate(truncated: TruncatedFit | None) -> float:
    """Rate of the exponential truncation; near 0, the tail is a plain power law."""
    return _NAN if truncated is None else truncated.rate
