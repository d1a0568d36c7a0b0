"""Norms: how large the weights are."""

from __future__ import annotations

import numpy as np

from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.spectrum import Spectrum

_HTSR = "Martin, Peng & Mahoney 2021, Nature Communications 12:4122"


@metric("log₁₀ Σ λ", source=_HTSR)
def log_norm(spectrum: Spectrum) -> float:
    """Logarithm of the squared Frobenius norm."""
    return log10(float(spectrum.eigenvalues.sum()))


@metric("log₁₀ λ_max", source=_HTSR)
def log_spectral_norm(spectrum: Spectrum) -> float:
    """Logarithm of the squared spectral norm: the layer's scale."""
    return log10(float(spectrum.eigenvalues[-1]))


@metric("α · log₁₀ λ_max", source=_HTSR)
def alpha_weighted(spectrum: Spectrum, tail: TailFit) -> float:
    """The exponent weighted by the scale (α̂)."""
    return tail.alpha * log_spectral_norm(spectrum) if tail.ok else float("nan")


@metric("log₁₀ Σ λ^α", source=_HTSR)
def log_alpha_norm(spectrum: Spectrum, tail: TailFit) -> float:
    """Logarithm of the α-Schatten norm, to the power α."""
    top = float(spectrum.eigenvalues[-1])
    if not tail.ok or top == 0:
        return float("nan")
    # λ_max^α is taken out: it overflows for large α.
    return tail.alpha * log10(top) + log10(float(np.sum((spectrum.eigenvalues / top) ** tail.alpha)))


def log10(value: float) -> float:
    """log₁₀, or NaN where there is none."""
    return float(np.log10(value)) if value > 0 else float("nan")
