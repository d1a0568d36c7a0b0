"""What changes the numbers (`Recipe`) apart from what changes only the speed (`RunOptions`)."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import Executor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from tailwise.core.errors import UsageError
from tailwise.core.validation import check_fields, check_least

ConvMode = Literal["flatten", "slices", "pooled"]
Precision = Literal["float64", "float32"]
BlasAsked = Literal["auto", "torch", "openblas"]


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
        if isinstance(self.randomize, bool):  # as the switch of the command line
            object.__setattr__(self, "randomize", int(self.randomize))
        check_fields(self)
        if self.estimator == "farms":
            object.__setattr__(self, "estimator", "farms:mid")
        if not 0.0 < self.k_frac <= 1.0:
            raise UsageError(f"k_frac is {self.k_frac}", fix="give a fraction in (0, 1], e.g. 0.1")
        check_least(self, randomize=0, bootstrap=0, max_fingers=0, seed=0)
        check_least(self, min_evals=1, farms_window=1, farms_windows=1, baseline_replicas=1)

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
    blas: BlasAsked = "auto"  # whose products and reductions on a CPU; auto: measured once on each machine
    extra: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_fields(self)
        check_least(self, workers=1)
        if self.num_gpus is not None and self.num_gpus <= 0:
            raise UsageError(f"num_gpus is {self.num_gpus!r}", fix="give a number above zero, or leave it out")
        if self.patience <= 0:
            raise UsageError(f"patience is {self.patience!r}", fix="give seconds, as patience=600")
