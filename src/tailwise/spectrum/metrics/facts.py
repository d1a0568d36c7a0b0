"""What metrics ask for: every fit of one layer's spectra, computed once and only if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from tailwise.core.kept import kept_property
from tailwise.core.recipe import Recipe
from tailwise.core.synonyms import known_name
from tailwise.spectrum.marchenko_pastur import Bulk, fit_bulk, gaussian_spectra, mean_and_sd
from tailwise.spectrum.metrics.metric import METRICS, Metric
from tailwise.spectrum.metrics.norms_ranks import singular_entropy
from tailwise.spectrum.other_laws import Law, Rival, TruncatedFit, fit_truncated, rivals
from tailwise.spectrum.power_law import TailFit, TailOptions, above_threshold, fit_tail
from tailwise.spectrum.spectrum import Spectrum
from tailwise.spectrum.trust import UNITS, resolved

BaselineLookup = Callable[[int, int, int, Recipe], Mapping[str, tuple[float, float]]]


@dataclass(frozen=True, eq=False)
class Spectra:
    """All spectra of one layer: of W, of W permuted (one per replica), of its windows."""

    spectrum: Spectrum
    permuted: tuple[Spectrum, ...] = ()
    windows: Spectrum | None = None
    unit: float = UNITS["F64"]  # unit roundoff of the stored entries
    rounding: float | None = None  # largest σ of their rounding, where it is not that of `unit` and this spectrum


#: The short side beyond which no noise is made, which takes time with its square: no layer of a model has one, and a
#: small file can name one by its factors.
LARGEST_NOISE = 1 << 15


def gaussian_baseline(rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
    """(mean, standard deviation) of alpha, alpha_hill and singular_entropy over noise of a shape."""
    # The cost grows as m², while the scatter of noise falls: large shapes need fewer replicas.
    replicas = max(2, round(recipe.baseline_replicas * min(1.0, 1024 / min(rows, cols))))
    spectra = gaussian_spectra(rows, cols, slices, replicas, recipe.seed)
    if (shape := window_shape(recipe, rows, cols)) is not None:
        tails = gaussian_spectra(*shape, recipe.farms_windows, replicas, recipe.seed)
    else:
        tails = spectra
    alphas = [_alpha(fit(noise, recipe.estimator, recipe)) for noise in tails]
    hills = [_alpha(fit(noise, recipe.hill_estimator, recipe)) for noise in spectra]
    entropies = [singular_entropy(noise) for noise in spectra]
    columns = {"alpha": alphas, "alpha_hill": hills, "singular_entropy": entropies}
    return {name: mean_and_sd(np.array(values)) for name, values in columns.items()}


def window_shape(recipe: Recipe, rows: int, cols: int) -> tuple[int, int] | None:
    """Shape of the FARMS windows, or None where the recipe has none."""
    if not recipe.uses_windows:
        return None
    side = min(recipe.farms_window, rows, cols)
    return side, side


def fit(spectrum: Spectrum, estimator: str, recipe: Recipe, rounding: float = 0.0) -> TailFit:
    """The tail of one spectrum under a recipe. `rounding`: see `TailOptions`."""
    options = tail_options(spectrum, recipe, rounding)
    return fit_tail(spectrum.eigenvalues, estimator.removeprefix("farms:"), options)


def tail_options(spectrum: Spectrum, recipe: Recipe, rounding: float = 0.0) -> TailOptions:
    """The estimators' settings under a recipe; what a float32 spectrum does not resolve is no tail."""
    floor = spectrum.error_bound if spectrum.solver.endswith("float32") else 0.0
    return TailOptions(recipe.k_frac, recipe.max_fingers, floor=floor, rounding=rounding)


def _alpha(tail: TailFit) -> float:
    return tail.alpha if tail.ok else float("nan")


class Facts:
    """Attributes named as in `metric.FACTS`."""

    def __init__(self, spectra: Spectra, recipe: Recipe, baseline: BaselineLookup = gaussian_baseline) -> None:
        self.spectrum, self.permuted, self._windows = spectra.spectrum, spectra.permuted, spectra.windows
        self.raised = dict[str, str]()  # metric → what it raised, in place of its value
        self.recipe, self._baseline = recipe, baseline
        self._unit, self._rounding = spectra.unit, spectra.rounding

    @property
    def rounding(self) -> float:
        """The largest singular value that rounding the entries to the stored type can make."""
        return self._edge(self.spectrum)

    def _edge(self, spectrum: Spectrum) -> float:
        return resolved(spectrum, self._unit) if self._rounding is None else self._rounding

    def _fit(self, spectrum: Spectrum, estimator: str) -> TailFit:
        return fit(spectrum, estimator, self.recipe, self._edge(spectrum))

    @property
    def fitted(self) -> Spectrum:
        """The spectrum that `tail` is fitted to: that of W, or of its windows."""
        return self._windows or self.spectrum

    @kept_property
    def tail(self) -> TailFit:
        """Fit of the recipe's estimator."""
        return self._fit(self.fitted, self.recipe.estimator)

    @kept_property
    def hill(self) -> TailFit:
        """Fit of the recipe's Hill estimator."""
        return self._fit(self.spectrum, self.recipe.hill_estimator)

    @kept_property
    def truncated(self) -> TruncatedFit | None:
        """Truncated power law over the fitted tail."""
        if not self.tail.ok:
            return None
        values = above_threshold(self.fitted.eigenvalues)
        return fit_truncated(values[values >= self.tail.lambda_min], self.tail.alpha)

    @kept_property
    def rivals(self) -> Mapping[Law, Rival] | None:
        """Other laws over the fitted tail."""
        if not self.tail.ok:
            return None
        values = above_threshold(self.fitted.eigenvalues)
        tail = values[(values >= self.tail.lambda_min) & (values <= self.tail.lambda_max)]
        return rivals(tail, self.tail.alpha)

    @kept_property
    def interval(self) -> tuple[float, float]:
        """Bootstrap 95 % interval of alpha: eigenvalues resampled, λ_min searched anew each time.

        Eigenvalues repel each other, so resampling them as if independent errs on the wide side.
        """
        rng = np.random.default_rng([self.recipe.seed, 1])
        source = self.fitted
        alphas = []
        for _ in range(self.recipe.bootstrap):
            drawn = np.sort(rng.choice(source.eigenvalues, size=len(source.eigenvalues)))
            resampled = fit_tail(
                drawn,
                self.recipe.estimator.removeprefix("farms:"),
                tail_options(source, self.recipe, self._edge(source)),
            )
            alphas.append(_alpha(resampled))
        finite = np.array([alpha for alpha in alphas if np.isfinite(alpha)])
        if len(finite) < 2:
            return float("nan"), float("nan")
        low, high = np.quantile(finite, [0.025, 0.975])
        return float(low), float(high)

    @kept_property
    def bulk(self) -> Bulk | None:
        """Marchenko-Pastur fit."""
        bulk, spectrum = _bulk(self.spectrum), self.spectrum
        if bulk is None:
            return None
        # Errors of arithmetic are no such bulk: their own largest would count as spikes.
        real = int(np.count_nonzero(spectrum.eigenvalues > self._edge(spectrum) ** 2))
        return replace(bulk, num_spikes=min(bulk.num_spikes, real))

    @kept_property
    def permuted_bulks(self) -> list[Bulk | None]:
        """Marchenko-Pastur fit of each permutation."""
        return [_bulk(spectrum) for spectrum in self.permuted]

    @kept_property
    def permuted_tails(self) -> list[TailFit]:
        """Tail fit of each permutation; none where alpha is fitted on windows, which are not permuted."""
        if self.recipe.uses_windows:
            return []
        return [self._fit(spectrum, self.recipe.estimator) for spectrum in self.permuted]

    @kept_property
    def baseline(self) -> Mapping[str, tuple[float, float]]:
        """Noise of the same shape; NaN where that is too large for any (`LARGEST_NOISE`)."""
        shape = self.spectrum
        if shape.m > LARGEST_NOISE:
            return dict.fromkeys(("alpha", "alpha_hill", "singular_entropy"), (float("nan"), float("nan")))
        return self._baseline(shape.rows, shape.cols, shape.slices, self.recipe)


def _bulk(spectrum: Spectrum) -> Bulk | None:
    return fit_bulk(spectrum.eigenvalues, spectrum.n, spectrum.m)


#: Facts that cost more than the rest of the metrics together; only computed where the recipe asks for them.
_ON_REQUEST = {
    "permuted": "randomize",
    "permuted_bulks": "randomize",
    "permuted_tails": "randomize",
    "interval": "bootstrap",
    "rivals": "rivals",
}
#: What an option becomes where a metric that needs it is named.
_SWITCHED_ON: dict[str, int | bool] = {"randomize": 1, "bootstrap": 200, "rivals": True}
#: Metrics that are computed only when named: slower than all others together.
_BY_NAME = ("truncated",)


def selected(recipe: Recipe) -> list[Metric]:
    """The metrics of a recipe, in the registry's order.

    Raises `UsageError` for an unknown name, or for one whose inputs the recipe does not provide.
    """
    if recipe.metrics:
        wanted = {name: METRICS[name] for name in recipe.metrics}
        return [metric for name, metric in METRICS.items() if name in wanted]
    return [metric for _, metric in METRICS.items() if _is_default(metric, recipe)]


def _is_default(metric: Metric, recipe: Recipe) -> bool:
    if any(need in _BY_NAME for need in metric.needs):
        return False
    return all(getattr(recipe, _ON_REQUEST[need]) > 0 for need in metric.needs if need in _ON_REQUEST)


def completed(recipe: Recipe) -> Recipe:
    """The recipe with its metrics by their names here, and with the options that they need switched on."""
    names = tuple(known_name(name, METRICS) for name in recipe.metrics)
    changes: dict[str, Any] = {"metrics": names} if names != recipe.metrics else {}
    for name in names:
        for need in METRICS[name].needs:
            option = _ON_REQUEST.get(need)
            if option and getattr(recipe, option) == 0:
                changes[option] = _SWITCHED_ON[option]
    return recipe.replace(**changes) if changes else recipe


def measure(spectra: Spectra, recipe: Recipe, baseline: BaselineLookup = gaussian_baseline) -> dict[str, float | None]:
    """Metric name → value; None where the metric is not defined for this spectrum (never NaN, never −1)."""
    return metrics_of(Facts(spectra, recipe, baseline))


def metrics_of(facts: Facts) -> dict[str, float | None]:
    """As `measure`, on facts that the caller reads too, so that no fit is computed twice."""
    values: dict[str, float | None] = {}
    for metric in selected(facts.recipe):
        given = {need: getattr(facts, need) for need in metric.needs}
        try:
            value = float(metric.compute(**given))
        except MemoryError:
            raise
        except Exception as error:  # of somebody's own metric, perhaps: it must not cost the other numbers
            facts.raised[metric.name] = f"{type(error).__name__}: {error}"[:200]
            value = math.nan
        values[metric.name] = value if math.isfinite(value) else None
    return values
