"""How large the weights are; how many directions the layer uses, and how evenly (ranks and entropies)."""

from __future__ import annotations

import math

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


@metric("Σλ / λ_max", source="Rudelson & Vershynin 2007, J. ACM 54:21")
def stable_rank(spectrum: Spectrum) -> float:
    """Squared Frobenius norm over squared spectral norm."""
    top = float(spectrum.eigenvalues[-1])
    return float(spectrum.eigenvalues.sum()) / top if top > 0 else float("nan")


@metric(
    "# σᵢ > max(σ_max · n · 2.2e−16, edge of the stored type's rounding)",
    source="Golub & Van Loan 2013, §5.4; numpy.linalg.matrix_rank; Marchenko & Pastur 1967",
    unit="count",
)
def matrix_rank(spectrum: Spectrum, rounding: float = 0.0) -> float:
    """Number of singular values that are not zero to the precision of the stored type.

    `rounding` is the largest σ that rounding the entries can make. A spectrum known only to `error_bound` (fast mode)
    counts those above it.
    """
    sigma = spectrum.singular_values
    tolerance = max(float(sigma[-1]) * spectrum.n * float(np.finfo(np.float64).eps), rounding)
    if spectrum.solver.endswith("float32"):
        tolerance = max(tolerance, float(np.sqrt(spectrum.error_bound)))
    return float(np.count_nonzero(sigma > tolerance))


@metric("m − matrix_rank", source="WeightWatcher 0.7", unit="count")
def rank_loss(spectrum: Spectrum, rounding: float = 0.0) -> float:
    """Number of directions that the matrix lacks."""
    return len(spectrum.eigenvalues) - matrix_rank(spectrum, rounding)


@metric("exp(−Σ p ln p), p = σ/Σσ", source="Roy & Vetterli 2007, EUSIPCO")
def effective_rank(spectrum: Spectrum) -> float:
    """Exponential of the Shannon entropy of the singular values."""
    return float(np.exp(shannon_entropy(spectrum.singular_values)))


def shannon_entropy(values: np.ndarray[tuple[int], np.dtype[np.float64]]) -> float:
    """−Σ p ln p of non-negative values normalised to sum 1, in nats; NaN where all are zero."""
    positive = values[values > 0]
    if len(positive) == 0:
        return float("nan")
    shares = positive / positive.sum()
    return float(-np.sum(shares * np.log(shares)))


@metric("−Σ p ln p / ln(rank), p = λ/Σλ", source="Martin & Mahoney 2021, JMLR 22:165")
def matrix_entropy(spectrum: Spectrum) -> float:
    """Entropy of the eigenvalues relative to that of a flat spectrum; 1 is flat."""
    rank = matrix_rank(spectrum)
    return shannon_entropy(spectrum.eigenvalues) / math.log(rank) if rank > 1 else float("nan")


@metric(
    "KL(p ‖ uniform) = ln r + Σ p ln p, p = σ/Σσ, r = m",
    source="the HT-SR singular-entropy manual",
    unit="nats",
)
def singular_entropy(spectrum: Spectrum) -> float:
    """Divergence of the singular values from a flat spectrum; 0 is flat, high is collapsed."""
    return math.log(len(spectrum.eigenvalues)) - shannon_entropy(spectrum.singular_values)


@metric("singular_entropy / ln r", source="the HT-SR singular-entropy manual")
def singular_entropy_normalized(spectrum: Spectrum) -> float:
    """singular_entropy in [0, 1], for comparing shapes."""
    count = len(spectrum.eigenvalues)
    return singular_entropy(spectrum) / math.log(count) if count > 1 else float("nan")
