"""What a comparison comes to, in one sentence."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from tailwise.judging.compare.size_of_change import magnitude
from tailwise.judging.compare.summary import WELL_FIT, WITH_ERROR

if TYPE_CHECKING:
    from tailwise.judging.compare.comparison import Comparison, LayerDelta

#: A ratio that is told.
_LEAP = 5.0
_STILL = "none of them in α beyond its error"
#: (what it is called, metric, whether that is a decimal logarithm).
_SIZES = (("λ_max", "log_spectral_norm", True), ("stable rank", "stable_rank", False))
#: Behind a sentence that counts what came nearer to 2–4 and what went away from it.
OF_ALPHA = "Where α lies is no measure of quality: that only a text tells (`tailwise evaluate`)."
#: What a move of α towards the band of well-trained layers is called, one out of it, and any other.
_NEARER, _FARTHER, _UNTOLD = "nearer to α 2–4", "farther from α 2–4", "no verdict"
_OF_CHANGE = "the change of an adapter alone, not a model with it: audit it merged (--adapter merged)"


def of_change_alone(model: str) -> str:
    """Why a whole model is not held against an audit of `model`."""
    return f"{model} was audited as {_OF_CHANGE}"


def conclusion(comparison: Comparison) -> str:
    """`11 of 58 matrices moved beyond their error: 7 nearer to α 2–4, 1 farther from α 2–4, 3 no verdict.`

    2 ≤ α ≤ 4 is where HT-SR finds well-trained layers: a reading of spectra, not a measure of quality, so that neither
    is called better. A matrix that stays within, whose fits are not trusted, or where one of them has more than
    half of the eigenvalues (TW502), has no verdict; where most trusted fits are such, none has one, and that is said.
    Where the weights themselves were compared, how far they moved comes first; a largest eigenvalue or a stable
    rank that became another, which α need not show, comes last, and before it where by α nothing moved.
    """
    size = magnitude(comparison)
    spectra, leaps = _of_spectra(comparison), _of_leaps(comparison)
    # What α does not show would read as the small print of an all-clear.
    said = (leaps, spectra) if _STILL in spectra else (spectra, leaps)
    return " ".join(part for part in (f"{size}." if size else "", *said) if part)


def how_far_is_told(comparison: Comparison) -> str:
    """The way to how far each layer moved, where that was not measured and something changed; else ""."""
    changed = any(not layer.identical for layer in comparison.layers)
    if not changed or any(layer.weights for layer in comparison.layers):
        return ""
    return "Which layers changed most: `tailwise compare BASE MODEL --weights` measures ‖ΔW‖/‖W₀‖ of each."


def _of_spectra(comparison: Comparison) -> str:
    if comparison.identical:
        return f"Nothing changed: all {_matrices(len(comparison.layers))} are identical, to the byte."
    if _of_change_alone(comparison):
        return f"No verdict: {comparison.notes[0]}."
    if not comparison.layers:
        return "Nothing is compared: no matrix is measured in both. Is this the right base?"
    of, lost = len(comparison.layers), _lost(comparison)
    moved = [layer for layer in comparison.layers if any(_significant(layer, name) for name in WITH_ERROR)]
    changed = sum(not layer.identical for layer in comparison.layers)
    if not moved:
        claimed = any(layer.deltas[name].significant is not None for layer in comparison.layers for name in WITH_ERROR
                      if name in layer.deltas)  # fmt: skip
        if not claimed:
            return f"No verdict: of {_matrices(of)}, no change has an error to be held against{lost}."
        return f"{changed} of {_matrices(of)} changed, {_STILL}{lost}."
    return _of_those_that_moved(comparison, moved)


def _of_change_alone(comparison: Comparison) -> bool:
    return bool(comparison.notes) and comparison.notes[0].endswith(_OF_CHANGE)


def _of_leaps(comparison: Comparison) -> str:
    """What no error is needed to see: a largest eigenvalue or a stable rank several times what it was."""
    if _of_change_alone(comparison):
        return ""
    leaps = {layer.name: _leap(layer) for layer in comparison.layers}
    found = sorted(
        (layer for layer in comparison.layers if leaps[layer.name] >= _LEAP), key=lambda one: -leaps[one.name]
    )
    if not found:
        return ""
    first = found[0]
    pairs = [(title, _pair(first, name, of_log)) for title, name, of_log in _SIZES]
    shown = [f"{title} {pair[0]:.3g} → {pair[1]:.3g}" for title, pair in pairs if pair is not None]
    return (
        f"Of {_matrices(len(found))} the largest eigenvalue or the stable rank became {_LEAP:g} times what it was or "
        f"more, or less in that ratio: first {first.name} ({', '.join(shown)})."
    )


def _leap(layer: LayerDelta) -> float:
    pairs = [pair for _, name, of_log in _SIZES if (pair := _pair(layer, name, of_log)) is not None]
    return max((max(after / before, before / after) for before, after in pairs if before and after), default=1.0)


def _pair(layer: LayerDelta, metric: str, of_log: bool) -> tuple[float, float] | None:
    delta = layer.deltas.get(metric)
    if delta is None or delta.before is None or delta.after is None:
        return None
    if not of_log:
        return delta.before, delta.after
    if max(abs(delta.before), abs(delta.after)) > 300:  # leaves the range of floats
        return None
    return 10.0**delta.before, 10.0**delta.after


def _of_those_that_moved(comparison: Comparison, moved: list[LayerDelta]) -> str:
    of, lost = len(comparison.layers), _lost(comparison)
    fits = [layer for layer in comparison.layers if layer.trusted and not layer.identical and "alpha" in layer.deltas]
    bulk = sum(layer.of_bulk for layer in fits)
    if 2 * bulk > len(fits):
        return (
            f"No verdict: {len(moved)} of {_matrices(of)} moved beyond their error, but alpha describes the bulk "
            f"rather than a tail (TW502) in {bulk} of the {len(fits)} with a good fit on both sides, so none is said "
            f"to be nearer to α 2–4 or farther{lost}."
        )
    counts = Counter(direction(layer) for layer in moved)
    counted = [f"{counts[word]} {word}" for word in (_NEARER, _FARTHER, _UNTOLD) if counts[word]]
    said = [f"{len(moved)} of {_matrices(of)} moved beyond their error: {', '.join(counted)}{lost}."]
    if 2 * counts[_UNTOLD] > len(moved):
        said.append(_unjudged(moved))
    if counts[_NEARER] or counts[_FARTHER]:
        said.append(OF_ALPHA)
    return " ".join(said)


def _unjudged(moved: list[LayerDelta]) -> str:
    """Where most matrices that moved have no verdict: that they moved is not nothing."""
    changes = [_change(layer) for layer in moved if direction(layer) == _UNTOLD]
    fell, rose = sum(change < 0 for change in changes), sum(change > 0 for change in changes)
    return (
        f"Of those without a verdict, the exponents of {fell} fell and of {rose} rose; "
        "α alone does not judge that: `tailwise diagnose` looks at more of the weights."
    )


def _change(layer: LayerDelta) -> float:
    return next(layer.deltas[name].change or 0.0 for name in WITH_ERROR if _significant(layer, name))


def direction(layer: LayerDelta) -> str:
    """`nearer to α 2–4`, `farther from α 2–4` or `no verdict`, of a matrix that moved."""
    delta = layer.deltas.get("alpha")
    if delta is None or not delta.significant or delta.before is None or delta.after is None:
        return _UNTOLD
    if layer.of_bulk or not layer.trusted:
        return _UNTOLD
    before, after = _outside(delta.before), _outside(delta.after)
    return _UNTOLD if before == after else _NEARER if after < before else _FARTHER


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
