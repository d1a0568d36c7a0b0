"""Entropies: how evenly the layer uses its directions."""

from __future__ import annotations

import math

from tailwise.spectrum.metrics.metric import metric
from tailwise.spectrum.metrics.ranks import matrix_rank, shannon_entropy
from tailwise.spectrum.spectrum import Spectrum


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
