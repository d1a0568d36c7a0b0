"""A metric is one decorated function whose parameters say what it needs."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from tailwise.core.registry import Registry
from tailwise.core.validation import checked

#: What a metric may ask for, by parameter name; `facts.Facts` provides each, computed once and only if asked for.
FACTS = (
    "spectrum",
    "fitted",
    "rounding",
    "tail",
    "hill",
    "truncated",
    "rivals",
    "interval",
    "bulk",
    "permuted",
    "permuted_bulks",
    "permuted_tails",
    "baseline",
)

_BUILT_IN = ("tail", "rivals", "norms_ranks", "baselines", "bulk", "randomized")


@dataclass(frozen=True)
class Metric:
    """A named number per spectrum."""

    name: str
    family: str
    formula: str
    source: str
    unit: str
    summary: str
    needs: tuple[str, ...]
    compute: Callable[..., float]


def _load_built_ins() -> None:
    for family in _BUILT_IN:
        import_module(f"tailwise.spectrum.metrics.{family}")
    # A family that was imported on its own before must not move to the front of every table.
    order = {family: place for place, family in enumerate(_BUILT_IN)}
    METRICS.sort(lambda item: order.get(item.family, len(order)))


METRICS: Registry[Metric] = Registry("metric", "tailwise.metrics", _load_built_ins)


@checked
def metric(formula: str, *, source: str, unit: str = "") -> Callable[[Callable[..., float]], Callable[..., float]]:
    """Register the decorated function under its own name.

    Its parameters are names from `FACTS`; it returns a float (NaN: not defined for this spectrum). The first line of
    its docstring is the summary. `formula` and `source` are shown by `tailwise metrics` and in the documentation.

    >>> import tailwise as tw
    >>> @tw.metric("λ_max / mean λ", source="my notebook")
    ... def peak(spectrum):
    ...     "The largest eigenvalue over the mean one."
    ...     return spectrum.eigenvalues[-1] / spectrum.eigenvalues.mean()
    >>> import numpy as np
    >>> tw.audit({"up.weight": np.eye(60)}, metrics="peak", use_cache=False)["up"].peak
    1.0
    >>> tw.extend.unregister("peak")
    """

    def register(function: Callable[..., float]) -> Callable[..., float]:
        needs = tuple(inspect.signature(function).parameters)
        unknown = set(needs) - set(FACTS)
        if unknown:
            raise TypeError(f"the metric {function.__name__} asks for {unknown}; it may ask for {FACTS}")
        described = _describe(function, needs, formula, source, unit)
        METRICS.add(function.__name__, described, by=function.__module__)
        return function

    return register


def _describe(function: Callable[..., Any], needs: tuple[str, ...], formula: str, source: str, unit: str) -> Metric:
    family = function.__module__.rsplit(".", 1)[-1]
    summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
    return Metric(function.__name__, family, formula, source, unit, summary, needs, function)
