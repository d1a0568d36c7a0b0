"""What changes the numbers (`Recipe`) apart from what changes only the speed (`RunOptions`)."""

from __future__ import annotations

import hashlib
import json
import math
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal

from tailwise.core.errors import UsageError

ConvMode = Literal["flatten", "slices", "pooled"]
Precision = Literal["float64", "float32"]


@dataclass(frozen=True)
class Recipe:
    """Everything that changes a number. It is written into every audit and enters the cache keys."""

    estimator: str = "ks"  # of `alpha`
    hill_estimator: str = "top"  # of `alpha_hill`
    k_frac: float = 0.1  # tail fraction of `top` and `top_outside`
    max_fingers: int = 10  # largest eigenvalues that `ks_clip` may drop
    conv: ConvMode = "flatten"
    precision: Precision = "float64"
    min_evals: int = 8
    randomize: int = 0  # number of entry permutations of each matrix
    baseline_replicas: int = 24  # noise matrices per shape; fewer above m = 1024, where noise scatters less
    rivals: bool = False  # also fit other laws to the tail, and compare their likelihoods
    bootstrap: int = 0  # resamples of the tail for a 95 % interval of alpha
    seed: int = 0
    farms_window: int = 128
    farms_windows: int = 15
    metrics: tuple[str, ...] = ()  # empty: every metric whose inputs are there

    def __post_init__(self) -> None:
        check_types(self)
        if not isinstance(self.metrics, tuple | list) or not all(isinstance(name, str) for name in self.metrics):
            raise UsageError(f"metrics is {self.metrics!r}", fix="give names of metrics, as metrics=('alpha',)")
        if self.estimator == "farms":
            object.__setattr__(self, "estimator", "farms:mid")
        if not 0.0 < self.k_frac <= 1.0:
            raise UsageError(f"k_frac is {self.k_frac}", fix="give a fraction in (0, 1], e.g. 0.1")
        if self.precision not in ("float64", "float32"):
            raise UsageError(f"precision is {self.precision!r}", fix="choose float64 or float32")
        if self.conv not in ("flatten", "slices", "pooled"):
            raise UsageError(f"conv is {self.conv!r}", fix="choose flatten, slices or pooled")
        for name in ("randomize", "bootstrap", "max_fingers", "seed"):
            if getattr(self, name) < 0:
                raise UsageError(f"{name} is {getattr(self, name)}", fix="give zero or more")
        for name in ("min_evals", "farms_window", "farms_windows", "baseline_replicas"):
            if getattr(self, name) < 1:
                raise UsageError(f"{name} is {getattr(self, name)}", fix="give one or more")

    @property
    def uses_windows(self) -> bool:
        """Whether alpha is fitted on sub-sampled windows (`farms:<rule>`)."""
        return self.estimator.startswith("farms:")

    def replace(self, **changes: Any) -> Recipe:
        """The same recipe with some fields changed."""
        return replace(self, **changes)

    def to_json(self) -> dict[str, object]:
        """Plain JSON types, keys sorted by field order."""
        return {**asdict(self), "metrics": list(self.metrics)}


def check_types(settings: Any, *, but: tuple[str, ...] = ()) -> None:
    """`UsageError` where a field of a frozen dataclass is of another type than its default; 2.0 is taken as 2.

    A whole number is no switch, a switch is no number, and NaN is no number.
    """
    for item in fields(settings):
        if item.name in but:
            continue
        given, default = getattr(settings, item.name), item.default
        if isinstance(default, bool):
            fits, wanted = isinstance(given, bool), "True or False"
        elif isinstance(default, int):
            fits, wanted = _is_number(given) and float(given).is_integer(), "a whole number"
            if fits:
                object.__setattr__(settings, item.name, int(given))
        elif isinstance(default, float):
            fits, wanted = _is_number(given), "a number"
            if fits:
                object.__setattr__(settings, item.name, float(given))
        elif isinstance(default, str):
            fits, wanted = isinstance(given, str), "a name"
        else:
            continue
        if not fits:
            raise UsageError(f"{item.name} is {given!r}", fix=f"give {wanted}, as {item.name}={default!r}")


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def digest_of(value: Any) -> str:
    """SHA-256 of plain JSON data, the same whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class RunOptions:
    """What changes only speed and place."""

    device: str = "cpu"
    workers: int | None = None  # None: one per core on the CPU, one on a GPU
    cache_dir: Path | str | None = None  # None: $TAILWISE_CACHE, or the user's cache folder; or a URL
    use_cache: bool = True
    executor: Executor | str = "local"  # local, dask, dask://host:port, ray, ray://host:port, or one of one's own
    num_gpus: float | None = None  # GPUs that a task takes where the engine schedules them; None: one if on a GPU
    patience: float = 600.0  # seconds without any answer of an engine after which the rest is given up
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self, but=("executor",))
        for name in ("workers", "num_gpus"):
            given = getattr(self, name)
            if given is not None and not (_is_number(given) and given > 0):
                raise UsageError(f"{name} is {given!r}", fix="give a number above zero, or leave it out")
        if self.workers is not None and self.workers != int(self.workers):
            raise UsageError(f"workers is {self.workers!r}", fix="give a whole number")
        if self.patience <= 0:
            raise UsageError(f"patience is {self.patience!r}", fix="give seconds, as patience=600")
