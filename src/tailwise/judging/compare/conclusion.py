"""What a comparison comes to, in one sentence."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tailwise.judging.compare.summary import WELL_FIT

if TYPE_CHECKING:
    from tailwise.judging.compare.comparison import Comparison, LayerDelta

#: Metrics whose changes have an error.
_TESTED = ("alpha", "alpha_hill")


def conclusion(comparison: Comparison) -> str:
    """`11 of 58 matrices moved beyond their error: 7 better, 1 worse, 3 no verdict.`

    Better is nearer to 2 ≤ α ≤ 4, as HT-SR reads a trusted fit, and worse is farther from it: a reading of spectra, not
    a measure of quality. A matrix that stays within, or whose fits are not trusted, has no verdict.
    """
    if comparison.identical:
        return f"Nothing changed: all {_matrices(len(comparison.layers))} are identical, to the byte."
    if not comparison.layers:
        return "Nothing is compared: no matrix is measured in both. Is this the right base?"
    of, lost = len(comparison.layers), _lost(comparison)
    moved = [layer for layer in comparison.layers if any(_significant(layer, name) for name in _TESTED)]
    changed = sum(not layer.identical for layer in comparison.layers)
    if not moved:
        claimed = any(layer.deltas[name].significant is not None for layer in comparison.layers for name in _TESTED
                      if name in layer.deltas)  # fmt: skip
        if not claimed:
            return f"No verdict: of {_matrices(of)}, no change has an error to be held against{lost}."
        return f"No matrix moved beyond its error: {changed} of {_matrices(of)} changed at all{lost}."
    counts = Counter(direction(layer) for layer in moved)
    counted = [f"{counts[word]} {word}" for word in ("better", "worse", "no verdict") if counts[word]]
    return f"{len(moved)} of {_matrices(of)} moved beyond their error: {', '.join(counted)}{lost}."


def direction(layer: LayerDelta) -> str:
    """`better`, `worse` or `no verdict`, of a matrix that moved."""
    delta = layer.deltas.get("alpha")
    if delta is None or not delta.significant or not layer.trusted or delta.before is None or delta.after is None:
        return "no verdict"
    before, after = _outside(delta.before), _outside(delta.after)
    return "no verdict" if before == after else "better" if after < before else "worse"


def _outside(alpha: float) -> float:
    low, high = WELL_FIT
    return max(low - alpha, alpha - high, 0.0)


def _significant(layer: LayerDelta, metric: str) -> bool:
    return metric in layer.deltas and bool(layer.deltas[metric].significant)


def _lost(comparison: Comparison) -> str:
    count = len(comparison.missing) + len(comparison.added)
    return f"; {_matrices(count)} {'is' if count == 1 else 'are'} in one of the two alone" if count else ""


def _matrices(count: int) -> str:
    return f"{count} {'matrix' if count == 1 else 'matrices'}"
