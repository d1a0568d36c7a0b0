"""Spectra to numbers: run the metrics that a recipe asks for."""

from __future__ import annotations

import math

from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import BaselineLookup, Facts, Spectra, gaussian_baseline
from tailwise.spectrum.metrics.metric import METRICS, Metric

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
    """The recipe with the options that its named metrics need switched on."""
    changes: dict[str, int | bool] = {}
    for name in recipe.metrics:
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
        value = float(metric.compute(**{need: getattr(facts, need) for need in metric.needs}))
        values[metric.name] = value if math.isfinite(value) else None
    return values
