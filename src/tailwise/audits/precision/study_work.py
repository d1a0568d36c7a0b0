"""One matrix in every format: read once, encoded and solved format by format."""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tailwise.audits.cache import Baselines, key_of
from tailwise.audits.precision.encoded import Damage
from tailwise.audits.precision.loaded import LoadedMatrix, LoadRangeError, Means
from tailwise.audits.precision.study import NOT_FINITE, LayerStudy, Reading
from tailwise.audits.work import failure
from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.matrices import MatrixSource, load
from tailwise.core.recipe import Recipe
from tailwise.number_formats.number_format import NumberFormat
from tailwise.spectrum.metrics.facts import Facts, Spectra, fit, metrics_of
from tailwise.spectrum.power_law import TailFit
from tailwise.spectrum.solve import NotFiniteError
from tailwise.spectrum.spectrum import Spectrum, pool
from tailwise.spectrum.trust import resolved, unit_of, unit_of_format


@dataclass
class StudyWorker:
    """What every work item of one study shares."""

    checkpoint: Checkpoint
    recipe: Recipe
    formats: Sequence[NumberFormat]
    means: Means
    baselines: Baselines
    stop: threading.Event = field(default_factory=threading.Event)

    def __call__(self, source: MatrixSource) -> LayerStudy:
        """The layer in every format. Never raises for a bad matrix."""
        layer = _layer_of(source)
        if self.stop.is_set():
            return replace(layer, status="FAILED", reason="the study was stopped")
        try:
            return self._study(source, layer)
        except LoadRangeError as error:
            return replace(layer, status=NOT_FINITE, reason=f"{error}; load them in another type")
        except Exception as error:
            status, reason = failure(error)
            return replace(layer, status=status, reason=reason)

    def _study(self, source: MatrixSource, layer: LayerStudy) -> LayerStudy:
        # The rows of a table are grouped as they are stored, although they are its inputs.
        turned = source.input_axis == 0 and source.kind != "embedding"
        slices = [LoadedMatrix(matrix, self.means, turned=turned) for matrix in load(source, self.checkpoint)]
        reference = pool([item.spectrum for item in slices])
        unit = max(unit_of(source.dtype), unit_of_format(self.means.load_dtype))
        fitted = fit(reference, "top", self.recipe, resolved(reference, unit))
        readings = {
            number_format.name: self._guarded(slices, number_format, (reference, fitted, unit))
            for number_format in self.formats
        }
        known = fitted.ok
        top = float(reference.eigenvalues[-1])
        return replace(
            layer,
            out_features=layer.in_features if turned else layer.out_features,
            in_features=layer.out_features if turned else layer.in_features,
            status=fitted.status,
            reason=fitted.remedy,
            alpha=fitted.alpha if known else None,
            alpha_sigma=fitted.sigma if known else None,
            stable_rank=float(reference.eigenvalues.sum()) / top if top > 0 else None,
            digest=slices[0].digest if len(slices) == 1 else key_of([item.digest for item in slices]),
            readings=readings,
        )

    def _guarded(
        self, slices: list[LoadedMatrix], number_format: NumberFormat, before: tuple[Spectrum, TailFit, float]
    ) -> Reading:
        """The reading; one format that fails costs no other."""
        try:
            return self._reading(slices, number_format, before)
        except Exception as error:
            status, reason = failure(error)
            return Reading(number_format.name, number_format.bits_per_weight(*slices[0].shape), status, reason)

    def _reading(
        self, slices: list[LoadedMatrix], number_format: NumberFormat, before: tuple[Spectrum, TailFit, float]
    ) -> Reading:
        reference, fitted, unit = before
        rows, cols = slices[0].shape
        reading = Reading(number_format.name, number_format.bits_per_weight(rows, cols))
        try:
            parts = [item.encoded(number_format) for item in slices]
        except NotFiniteError as error:
            reason = f"{error}: the format cannot hold them; scale the layer, or use another format"
            overflow = sum(item.damage(number_format).overflow for item in slices)
            return replace(reading, status=NOT_FINITE, reason=reason, overflow=overflow)
        damage = Damage()
        for part in parts:
            damage.add(part.damage)
        spectrum = pool([part.spectrum for part in parts])
        rounding = resolved(spectrum, max(unit, unit_of_format(number_format.name)))
        overlaps = [part.overlap for part in parts if part.overlap is not None]
        return replace(
            reading,
            **_tail(reference, fitted, spectrum, fit(spectrum, "top", self.recipe, rounding)),
            **_of_weights(damage),
            spectral_distance=spectral_distance(reference, spectrum),
            stable_rank_change=stable_rank_change(reference, spectrum),
            overlap=float(np.mean(overlaps)) if overlaps else None,
            metrics=self._metrics(spectrum),
            seconds=sum(part.seconds for part in parts),
        )

    def _metrics(self, spectrum: Spectrum) -> dict[str, float | None]:
        return metrics_of(Facts(Spectra(spectrum), self.recipe, self.baselines)) if self.recipe.metrics else {}


def _layer_of(source: MatrixSource) -> LayerStudy:
    slices = len(source.views)
    return LayerStudy(
        source.name, source.role, source.block, source.rows, source.cols * slices, source.n_params, source.dtype
    )


def _tail(before: Spectrum, old: TailFit, after: Spectrum, new: TailFit) -> Mapping[str, Any]:
    tail: dict[str, Any] = {
        "status": new.status, "reason": new.remedy, "k": new.k, "n_eigs": len(after.eigenvalues),
        "method": f"{new.estimator}/{after.solver}",
    }  # fmt: skip
    if not new.ok:
        return tail
    tail |= {"alpha": new.alpha, "alpha_sigma": new.sigma}
    if not old.ok:
        return tail
    return tail | {
        "alpha_shift": new.alpha - old.alpha,
        "alpha_shift_se": shift_error((before, old), (after, new)),
    }


def _of_weights(damage: Damage) -> Mapping[str, Any]:
    relative = math.sqrt(damage.error / damage.norm) if damage.norm > 0 else (0.0 if damage.error == 0 else None)
    return {
        "relative_error": relative,
        "sqnr_db": -20 * math.log10(relative) if relative else None,
        "overflow": damage.overflow,
        "underflow": damage.underflow,
    }


#: Of the bootstrap; its own error is then 6 %.
_RESAMPLES = 200
#: Shares of a normal law below ∓1 σ. Half of the way between these quantiles is the standard error; the standard
#: deviation of resamples would be that of a few wild ones, since 1/x of a tail of few eigenvalues has no variance.
_ONE_SIGMA = (0.15866, 0.84134)


def spectral_distance(before: Spectrum, after: Spectrum) -> float:
    """Wasserstein-1 distance of ln λ: the mean |ln λ'_i − ln λ_i| over sorted spectra of equal length.

    What neither spectrum resolves counts as equal: λ below both error bounds, or below the rounding of the largest,
    is raised to that floor.
    """
    top = max(float(before.eigenvalues[-1]), float(after.eigenvalues[-1]))
    floor = max(before.error_bound, after.error_bound, top * before.m * float(np.finfo(np.float64).eps))
    if floor <= 0:
        return 0.0
    old, new = (np.log(np.maximum(s.eigenvalues, floor)) for s in (before, after))
    return float(np.mean(np.abs(new - old)))


def stable_rank_change(before: Spectrum, after: Spectrum) -> float | None:
    """(R' − R)/R of the stable rank R = Σλ/λ_max."""
    ranks = [float(s.eigenvalues.sum() / s.eigenvalues[-1]) if s.eigenvalues[-1] > 0 else 0.0 for s in (before, after)]
    return ranks[1] / ranks[0] - 1 if ranks[0] > 0 and ranks[1] > 0 else None


def shift_error(before: tuple[Spectrum, TailFit], after: tuple[Spectrum, TailFit]) -> float | None:
    """Standard error of α' − α of two `top` fits: a bootstrap of eigenvalues paired by rank.

    Each resample draws the same ranks from both spectra, so that the noise of sampling that they share cancels: the
    unpaired error √(σ² + σ'²) would be far too large. Most of what is left is that of λ_ref, the edge of the tail.
    Ranks hide some of the scatter: where a format reorders many eigenvalues, the true error is up to twice as large.
    """
    (old, first), (new, second) = before, after
    if not (first.ok and second.ok):
        return None
    if first.k != second.k or len(old.eigenvalues) != len(new.eigenvalues):
        return math.hypot(first.sigma, second.sigma)
    ranks = _largest_of_resamples(len(old.eigenvalues), first.k)
    alphas = []
    for spectrum in (old, new):
        lowest = float(spectrum.eigenvalues[spectrum.eigenvalues > 0][0])
        tails = np.log(np.maximum(spectrum.eigenvalues, lowest))[ranks]
        spread = (tails - tails[:, :1]).mean(axis=1)
        alphas.append(1 + 1 / np.where(spread > 0, spread, np.nan))
    moved = alphas[1] - alphas[0]
    moved = moved[np.isfinite(moved)]
    if len(moved) <= _RESAMPLES / 2:
        return None
    low, high = np.quantile(moved, _ONE_SIGMA)
    return float(high - low) / 2


@lru_cache(maxsize=64)
def _largest_of_resamples(m: int, k: int) -> NDArray[np.int64]:
    """The k largest of m ranks drawn with replacement, ascending, (resamples, k).

    Made from the largest order statistics of m uniforms, one after the other: U_(m) = V^(1/m), and so on.
    """
    rng = np.random.default_rng([m, k])
    logs = np.log(rng.random((_RESAMPLES, k))) / np.arange(m, m - k, -1)
    largest = np.exp(np.cumsum(logs, axis=1))
    ranks = np.minimum((largest * m).astype(np.int64), m - 1)
    return np.ascontiguousarray(ranks[:, ::-1])
