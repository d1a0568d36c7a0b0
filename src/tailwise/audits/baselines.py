"""Noise of each shape, computed once and kept."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import TypeGuard

from tailwise.audits.cache import Cache, key_of
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import gaussian_baseline, window_shape


class Baselines:
    """Noise of each shape, computed once per shape and kept in the cache."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._known: dict[str, Mapping[str, tuple[float, float]]] = {}
        self._locks: dict[str, threading.Lock] = {}
        self._guard = threading.Lock()

    def __call__(self, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        """As `gaussian_baseline`."""
        key = baseline_key(rows, cols, slices, recipe)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._known:
                self._known[key] = self._find(key, rows, cols, slices, recipe)
            return self._known[key]

    def _find(self, key: str, rows: int, cols: int, slices: int, recipe: Recipe) -> Mapping[str, tuple[float, float]]:
        stored = self._cache.note("baselines", key)
        if _is_baseline(stored):
            return {name: (mean, sd) for name, (mean, sd) in stored.items()}
        computed = gaussian_baseline(rows, cols, slices, recipe)
        self._cache.keep_note("baselines", key, dict(computed))
        return computed


def baseline_key(rows: int, cols: int, slices: int, recipe: Recipe) -> str:
    """Where the noise of a shape is kept, as a note of the kind `baselines`."""
    shape = [max(rows, cols), min(rows, cols), slices, window_shape(recipe, rows, cols)]
    fits = [recipe.estimator, recipe.hill_estimator, recipe.k_frac, recipe.max_fingers]
    return key_of("baseline", shape, fits, recipe.baseline_replicas, recipe.farms_windows, recipe.seed)


def _is_baseline(stored: object) -> TypeGuard[dict[str, list[float]]]:
    return (
        isinstance(stored, dict)
        and set(stored) == {"alpha", "alpha_hill", "singular_entropy"}
        and all(
            isinstance(pair, list) and len(pair) == 2 and all(isinstance(number, float) for number in pair)
            for pair in stored.values()
        )
    )
