"""Exponents of a spectrum's tail: p(λ) ∝ λ^−α for λ ≥ λ_min, by maximum likelihood.

With a tail of k values above a reference λ_ref, α = 1 + k / Σ ln(λ_i/λ_ref) and its standard error is
(α − 1)/√k (Hill 1975; Clauset, Shalizi & Newman 2009, eq. 3.1-3.2). The estimators differ only in which λ are
the tail. The classical Hill index of the survival function is α − 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.registry import Registry
from tailwise.core.shown import Brief
from tailwise.core.validation import check_fields, check_least, checked
from tailwise.spectrum.ks_scan import distance_truncated, ks_at, scan, scan_truncated

#: WeightWatcher's threshold: smaller eigenvalues count as zero in `ks`, `ks_clip`, `mid` and `peak`.
EVALS_THRESHOLD = 1e-5
#: HT-SR reads a verdict only off fits with at least this many eigenvalues in the spectrum.
MIN_EVALS_FOR_VERDICT = 50
#: What the alpha manual reports for a tail without any spread.
DEGENERATE_ALPHA = 10.0

#: Share of the largest eigenvalue by which solvers miss zero.
_NEGATIVE = 1e-10
#: Mean ln(λ/λ_ref) up to which a spread is rounding: eigenvalues that are equal differ by a few ε.
DUST = 1e-12
#: The same where entries were rounded, in parts of rounding/σ_ref. Rounding an orthogonal matrix spreads its σ over a
#: semicircle of radius rounding/√2, so the mean of 2·ln(σ/σ_min) is √2·rounding/σ at most; the rest is room.
_SPREAD = 2.0
#: What coarse codes could blur at most, so that an α up to 11 is read whatever is stored: a heuristic.
_MOST_DUST = 0.1

Vector = NDArray[np.float64]


@dataclass(frozen=True, repr=False)
class TailFit(Brief):
    """A fitted power law, or why there is none."""

    estimator: str
    alpha: float
    sigma: float  # standard error of alpha
    k: int  # values in the tail
    lambda_min: float  # λ_ref
    lambda_max: float
    ks_distance: float  # one-sided, as WeightWatcher has it
    ks_distance_two_sided: float
    status: str = "OK"  # OK, FEW_EIGENVALUES, DEGENERATE
    remedy: str = ""
    dropped: int = 0  # largest eigenvalues left out (`ks_clip`)

    @property
    def ok(self) -> bool:
        """Whether alpha is a number that means something."""
        return self.status != "DEGENERATE"


@dataclass(frozen=True)
class TailOptions:
    """Settings of the estimators."""

    k_frac: float = 0.1
    max_fingers: int = 10
    finger_thresh: float = 1.0
    floor: float = 0.0  # λ up to this are not known and count as zero (the error bound of a float32 spectrum)
    rounding: float = 0.0  # σ may be off by this much: what the stored type leaves (`spectrum.rounding`)

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, max_fingers=0, floor=0, rounding=0)
        if not 0.0 < self.k_frac <= 1.0:
            raise UsageError(f"k_frac is {self.k_frac}", fix="give a fraction in (0, 1], e.g. 0.1")


Estimate = Callable[[Vector, TailOptions], TailFit]


@checked
def fit_tail(eigenvalues: ArrayLike, estimator: str = "ks", options: TailOptions | None = None) -> TailFit:
    """Fit the tail of `eigenvalues` (m values ≥ 0, in any order) by the named estimator.

    A spectrum of fewer than 50 values is fitted and marked; a tail without spread is `DEGENERATE`. Values below zero
    by no more than the rounding of an eigenvalue solver count as zero. Raises `UsageError` for an unknown estimator,
    and for values that are no spectrum: not finite, below zero, or not on one axis.

    >>> import numpy as np, tailwise as tw
    >>> values = np.random.default_rng(0).pareto(2.0, 5000) + 1  # density ∝ λ^−3
    >>> fit = tw.fit_tail(values)
    >>> abs(fit.alpha - 3) < 3 * fit.sigma
    True
    """
    eigenvalues = _spectrum(eigenvalues)
    if estimator not in ESTIMATORS:
        raise unknown_name("estimator", estimator, ESTIMATORS)
    chosen = options or TailOptions()
    known = np.where(eigenvalues > chosen.floor, eigenvalues, 0.0)
    fit = ESTIMATORS[estimator](known, chosen)
    if not isinstance(fit, TailFit):
        raise UsageError(
            f"the estimator {estimator} gave a {type(fit).__name__}", fix="return `fixed_tail(…)`, a TailFit"
        )
    count = int(np.count_nonzero(known > chosen.rounding**2))
    if fit.ok and count < MIN_EVALS_FOR_VERDICT:
        remedy = f"{count} eigenvalues above zero: read alpha with its error, give no verdict"
        return replace(fit, status="FEW_EIGENVALUES", remedy=remedy)
    return fit


def _spectrum(given: ArrayLike) -> Vector:
    try:
        values = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"eigenvalues are no numbers ({error})", fix="give a list or an array of numbers") from error
    if values.ndim != 1:
        raise UsageError(f"eigenvalues have the shape {values.shape}", fix="give them on one axis")
    if not np.isfinite(values).all():
        raise UsageError(f"{int((~np.isfinite(values)).sum())} eigenvalues are NaN or infinite", fix="leave them out")
    if float(values.min(initial=0.0)) < -_NEGATIVE * float(values.max(initial=0.0)):
        raise UsageError(f"an eigenvalue is {float(values.min()):.3g}", fix="give eigenvalues of WᵀW, which are ≥ 0")
    ascending = values if bool((values[1:] >= values[:-1]).all()) else np.sort(values)
    return np.maximum(ascending, 0.0) if len(ascending) and ascending[0] < 0 else ascending


def _top(eigenvalues: Vector, options: TailOptions) -> TailFit:
    k = min(max(int(options.k_frac * len(eigenvalues)), 2), len(eigenvalues))
    return fixed_tail("top", eigenvalues, len(eigenvalues) - k, inside=True, rounding=options.rounding)


def _top_outside(eigenvalues: Vector, options: TailOptions) -> TailFit:
    m = len(eigenvalues)
    k = min(max(10, int(options.k_frac * m)), m - 1)
    return fixed_tail("top_outside", eigenvalues, m - k, inside=False, rounding=options.rounding)


def _mid(eigenvalues: Vector, options: TailOptions) -> TailFit:
    values = above_threshold(eigenvalues)
    return fixed_tail("mid", values, len(values) // 2, inside=True, rounding=options.rounding)


def _ks(eigenvalues: Vector, options: TailOptions) -> TailFit:
    return _scanned("ks", above_threshold(eigenvalues), options.rounding)


def _peak(eigenvalues: Vector, options: TailOptions) -> TailFit:
    values = above_threshold(eigenvalues)
    if len(values) < 2 or values[0] == values[-1]:
        return degenerate("peak", values)
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10.0 ** edges[np.argmax(counts)]
    # The published code compares log10(0.95·peak) with λ itself, so the lower bound rarely binds. Kept:
    # published α values come from it (AlphaPruning's net_esd_estimator, xmin_peak).
    allowed = (values[:-1] >= np.log10(0.95 * peak)) & (values[:-1] <= 1.5 * peak)
    return _scanned("peak", values, options.rounding, allowed)


def _ks_clip(eigenvalues: Vector, options: TailOptions) -> TailFit:
    """WeightWatcher's `clip_xmax`: drop the largest until alpha falls by `finger_thresh`, if it does."""
    values = above_threshold(eigenvalues)
    first = _scanned("ks_clip", values, options.rounding)
    for dropped in range(2, min(options.max_fingers, len(values) // 2)):
        fit = _scanned("ks_clip", values[:-dropped], options.rounding)
        if fit.ok and fit.alpha + options.finger_thresh < first.alpha:
            return replace(fit, dropped=dropped, lambda_max=float(values[-dropped - 1]))
        if not fit.ok or fit.alpha <= 2.0:
            break
    return first


def _ks_truncated(eigenvalues: Vector, options: TailOptions) -> TailFit:
    """λ_min by the distance from a power law that ends at λ_max, as `powerlaw` has it with `xmax`."""
    values = above_threshold(eigenvalues)
    return _scanned("ks_truncated", values, options.rounding, truncated=True)


_OF_LARGEST = ("top", "top_outside")
#: Part of σ_max up to which rounding can hide no large value; codes of few bits have values of their own.
_FINE = 0.05
_BUILT_IN: Mapping[str, Estimate] = {
    "top": _top,
    "top_outside": _top_outside,
    "mid": _mid,
    "peak": _peak,
    "ks": _ks,
    "ks_clip": _ks_clip,
    "ks_truncated": _ks_truncated,
}


def _load_built_ins() -> None:
    for name, function in _BUILT_IN.items():
        ESTIMATORS.add(name, function, by=__name__)


#: Estimator name → function of (ascending eigenvalues, options). `farms` is a way of sampling W, not of fitting.
ESTIMATORS: Registry[Estimate] = Registry("estimator", "tailwise.estimators", _load_built_ins)


def estimator_names() -> tuple[str, ...]:
    """What the option `estimator` takes."""
    return (*ESTIMATORS, "farms")


def estimator(name: str) -> Callable[[Estimate], Estimate]:
    """Register the decorated function as an estimator of α: (ascending eigenvalues, `TailOptions`) → `TailFit`.

    `fixed_tail(name, eigenvalues, start)` makes the fit once the tail is chosen, and `degenerate(name, eigenvalues)`
    says that there is none. Audits, gates and the command line know the name from then on.
    """

    def register(function: Estimate) -> Estimate:
        ESTIMATORS.add(name, function, by=function.__module__)
        return function

    return register


def above_threshold(eigenvalues: Vector) -> Vector:
    """λ > 1e−5; where none is (weights of a very small scale), every λ above rounding."""
    if len(eigenvalues) and eigenvalues[-1] <= EVALS_THRESHOLD:
        rounding = float(eigenvalues[-1]) * len(eigenvalues) * float(np.finfo(np.float64).eps)
        return eigenvalues[eigenvalues > rounding]
    return eigenvalues[eigenvalues > EVALS_THRESHOLD]


def fixed_tail(name: str, values: Vector, start: int, *, inside: bool = True, rounding: float = 0.0) -> TailFit:
    """The tail `values[start:]`, with λ_ref its smallest (`inside`) or the value just below it.

    Of the largest values, one that is rounding is no reference, as zero is none.
    """
    ref_index = start if inside else start - 1
    fine = name in _OF_LARGEST and len(values) > 0 and rounding <= _FINE * math.sqrt(values[-1])
    nothing = rounding**2 if fine else 0.0
    if len(values) - start >= 2 and ref_index >= 0 and values[ref_index] <= nothing < values[-1]:
        return _no_reference(name, values[values > nothing])
    if len(values) - start < 2 or ref_index < 0 or values[ref_index] <= 0:
        return degenerate(name, values)
    k = len(values) - start
    log_ratio = float(np.sum(np.log(values[start:] / values[ref_index])))
    dust = DUST if _falls_on(values, ref_index, rounding) else max(DUST, float(_dust(values[ref_index], rounding)))
    if not log_ratio > k * dust:
        return degenerate(name, values)
    alpha = 1.0 + k / log_ratio
    one_sided, two_sided = ks_at(np.log(values[ref_index:]), 0, alpha)
    return TailFit(
        name, alpha, (alpha - 1.0) / math.sqrt(k), k, float(values[ref_index]), float(values[-1]), one_sided, two_sided
    )  # fmt: skip


def _falls_on(values: Vector, start: int, rounding: float) -> bool:
    """Whether the spectrum goes on falling below a tail, to the median, by more than rounding and in no one jump.

    Rounded equal values end there, or lie above a gap; the edge of noise does neither, and its slope is its own however
    coarse the codes are.
    """
    below = values[len(values) // 2 : start + 1]
    if not rounding or len(below) < 2 or below[0] <= 0:
        return False
    logs = np.log(below)
    drop = float(logs[-1] - logs[0])
    return drop > 2 * _SPREAD * rounding / math.sqrt(values[start]) and float(np.diff(logs).max()) < drop / 2


def _dust(references: Any, rounding: float) -> Any:
    """Mean ln(λ/λ_ref) that rounding the entries may have made above each λ_ref."""
    return np.minimum(_SPREAD * rounding / np.sqrt(references), _MOST_DUST)


def _scanned(
    name: str, values: Vector, rounding: float, allowed: NDArray[np.bool_] | None = None, *, truncated: bool = False
) -> TailFit:  # fmt: skip
    if len(values) == 1:
        return _no_reference(name, values)
    if len(values) < 2:
        return degenerate(name, values)
    logs = np.log(values)
    dust = _dust(values[:-1], rounding) if rounding else None
    best = scan_truncated(logs, dust) if truncated else scan(logs, allowed, dust)
    if best is None:
        return degenerate(name, values)
    index, alpha, distance = best
    k = len(values) - index
    _, two_sided = (distance_truncated if truncated else ks_at)(logs, index, alpha)
    return TailFit(
        name, alpha, (alpha - 1.0) / math.sqrt(k), k, float(values[index]), float(values[-1]), distance, two_sided
    )  # fmt: skip


def _no_reference(name: str, values: Vector) -> TailFit:
    """The tail reaches down to zeros. That is the opposite of the manual's flat tail, so its 10.0 would mislead."""
    rank = int(np.count_nonzero(values))
    above = f"{rank} eigenvalue{'s' if rank != 1 else ''} above zero"
    remedy = f"{above}: the tail has no exponent; read the ranks of this layer"
    return replace(degenerate(name, values), alpha=float("nan"), remedy=remedy)


def degenerate(name: str, values: Vector) -> TailFit:
    """No exponent: the tail is empty, or all its values are equal."""
    top = float(values[-1]) if len(values) else 0.0
    remedy = "the tail has no spread (equal or zero eigenvalues); leave this layer out of means and plans"
    nan = float("nan")
    return TailFit(name, DEGENERATE_ALPHA, nan, 0, nan, top, nan, nan, "DEGENERATE", remedy)
