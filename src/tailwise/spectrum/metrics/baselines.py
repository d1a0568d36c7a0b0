"""Each fit against a Gaussian matrix of the same shape: how far from untrained."""

from __future__ import annotations

from collections.abc import Mapping

from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.metrics.norms_ranks import singular_entropy
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

_OWN = "this project; Gaussian spectra by Dumitriu & Edelman 2002"
Baseline = Mapping[str, tuple[float, float]]


@metric("mean of alpha over Gaussian matrices of this shape", source=_OWN)
def alpha_baseline(baseline: Baseline) -> float:
    """What alpha is for pure noise of this shape."""
    return baseline["alpha"][0]


@metric("standard deviation of alpha over Gaussian matrices of this shape", source=_OWN)
def alpha_baseline_sd(baseline: Baseline) -> float:
    """How much alpha scatters for pure noise of this shape."""
    return baseline["alpha"][1]


@metric("(alpha_baseline − alpha) / alpha_baseline_sd", source=_OWN, unit="sd")
def alpha_z(tail: TailFit, baseline: Baseline) -> float:
    """How many standard deviations the tail is heavier than noise; near 0 is untrained."""
    return _below(tail, baseline["alpha"])


@metric("mean of alpha_hill over Gaussian matrices of this shape", source=_OWN)
def alpha_hill_baseline(baseline: Baseline) -> float:
    """What alpha_hill is for pure noise of this shape."""
    return baseline["alpha_hill"][0]


@metric("standard deviation of alpha_hill over Gaussian matrices of this shape", source=_OWN)
def alpha_hill_baseline_sd(baseline: Baseline) -> float:
    """How much alpha_hill scatters for pure noise of this shape."""
    return baseline["alpha_hill"][1]


@metric("(alpha_hill_baseline − alpha_hill) / alpha_hill_baseline_sd", source=_OWN, unit="sd")
def alpha_hill_z(hill: TailFit, baseline: Baseline) -> float:
    """How many standard deviations the largest eigenvalues are heavier-tailed than noise."""
    return _below(hill, baseline["alpha_hill"])


@metric("mean of singular_entropy over Gaussian matrices of this shape", source=_OWN, unit="nats")
def singular_entropy_baseline(baseline: Baseline) -> float:
    """What singular_entropy is for pure noise of this shape."""
    return baseline["singular_entropy"][0]


@metric("(singular_entropy − its baseline) / the baseline's sd", source=_OWN, unit="sd")
def singular_entropy_z(spectrum: Spectrum, baseline: Baseline) -> float:
    """How many standard deviations the spectrum is less even than noise."""
    mean, sd = baseline["singular_entropy"]
    return (singular_entropy(spectrum) - mean) / sd if sd > 0 else float("nan")


def _below(fit: TailFit, reference: tuple[float, float]) -> float:
    mean, sd = reference
    return (mean - fit.alpha) / sd if fit.ok and sd > 0 else float("nan")
