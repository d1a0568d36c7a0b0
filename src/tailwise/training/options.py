"""What a monitor can be told."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypedDict

from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.validation import check_fields, check_least
from tailwise.history.point import Alarm, Point

if TYPE_CHECKING:
    from tailwise.training.sinks import PointSink

Rule = Callable[[Point], Sequence[Alarm]]
FullCadence = Literal["audit", "lanczos", "off"]

#: Metrics of a full measurement: those that alarms read, but `num_traps`, which takes a second spectrum of each matrix.
METRICS = (
    "alpha", "alpha_sigma", "alpha_hill", "alpha_hill_sigma", "ks_distance", "num_pl_spikes", "lambda_min",
    "lambda_max", "log_norm", "log_spectral_norm", "alpha_weighted", "stable_rank", "matrix_rank", "rank_loss",
    "effective_rank", "matrix_entropy", "singular_entropy",
)  # fmt: skip


class MonitorSettings(TypedDict, total=False):
    """Fields of `Options`."""

    full_every: int | None
    full: FullCadence
    max_overhead: float
    rules: Sequence[Rule] | None
    sinks: Sequence[PointSink]
    run: str
    layers: str | None
    roles: str | Iterable[str]
    metrics: Sequence[str]
    estimator: str
    at_start: bool
    first_step: int
    optimizer: Any
    gradients: bool
    snapshot_bytes: int
    clock: Callable[[], float]


@dataclass(frozen=True)
class Options:
    """How a monitor measures, and where to."""

    full_every: int | None = None  # steps between full measurements, with the next cheap one; None: ten times `every`
    full: FullCadence = "audit"  # every eigenvalue, estimates by Lanczos, or none
    max_overhead: float = 0.02  # share of the training thread's time that measuring may take; 1: all it needs
    rules: Sequence[Rule] | None = (
        None  # each is called with every point and returns alarms; None: `Alarms()`, (): none
    )
    sinks: Sequence[PointSink] = ()  # beside `history`
    run: str = ""  # name of the run; empty: the time at which it began
    layers: str | None = None  # only matrices whose name matches
    roles: str | Iterable[str] = ()  # only matrices of these roles
    metrics: Sequence[str] = METRICS  # of a full measurement, as of an audit
    estimator: str = "ks"  # of alpha
    at_start: bool = True  # measure before the first step as well
    first_step: int = 0  # of a run that goes on
    optimizer: Any = None  # that trains the model: one of torch.optim, several in a list, or a name
    gradients: bool = False  # the norm of each matrix's gradient too, by hooks that are set for one step before a point
    snapshot_bytes: int = 8 << 30  # weights copied at once; a larger model is taken in turns
    clock: Callable[[], float] = time.perf_counter

    def __post_init__(self) -> None:
        check_fields(self, but=("rules", "sinks"))
        check_least(self, full_every=1, first_step=0, snapshot_bytes=1)
        for name in ("rules", "sinks"):
            given = getattr(self, name)
            if given is not None and (isinstance(given, str) or not isinstance(given, Iterable)):
                raise UsageError(f"{name} is no list", fix=f"write {name}=[…]")
        rules = () if self.rules is None else self.rules
        if (wrong := next((rule for rule in rules if not callable(rule)), None)) is not None:
            raise UsageError(f"{wrong!r} is no rule", fix="give functions from a point to alarms, such as Alarms()")
        optimizer_names(self.optimizer)
        if not 0.0 < self.max_overhead <= 1.0:
            raise UsageError(f"max_overhead is {self.max_overhead}", fix="give a share in (0, 1], e.g. 0.02")
        if self.full not in ("audit", "lanczos", "off"):
            raise UsageError(f"full is {self.full!r}", fix="choose audit, lanczos or off")
        if self.full == "lanczos" and tuple(self.metrics) != METRICS:
            raise UsageError("full='lanczos' estimates what it can", fix="leave metrics out, or choose full='audit'")
        if self.full_every is not None and self.full_every < 1:
            raise UsageError(f"full_every is {self.full_every}", fix="give one or more")

    @property
    def role_names(self) -> tuple[str, ...]:
        """`roles` as a tuple."""
        return (self.roles,) if isinstance(self.roles, str) else tuple(self.roles)


def optimizer_names(given: Any) -> str:
    """Names of the classes of optimizers, such as `Muon, AdamW`; "" where none is known.

    Raises `UsageError` for what is no optimizer.
    """
    several = list(given) if isinstance(given, list | tuple) else [] if given is None else [given]
    names = []
    for given_one in several:
        one = given_one
        while not isinstance(one, str) and hasattr(one, "optimizer"):  # what Accelerate and Lightning make of it
            one = one.optimizer
        if not isinstance(one, str) and not hasattr(one, "param_groups"):
            raise UsageError(
                f"{type(one).__name__} is no optimizer", fix="give an optimizer, a list of them, or a name"
            )
        names.append(one if isinstance(one, str) else type(one).__name__)
    return ", ".join(dict.fromkeys(names))


def rate_of(given: Any) -> float | None:
    """The learning rate of the first group of the first optimizer that has one; no tensor is waited for."""
    for one in given if isinstance(given, list | tuple) else (given,):
        groups = getattr(one, "param_groups", None) or ()
        for group in groups:
            rate = group.get("lr")
            if isinstance(rate, int | float):
                return float(rate)
    return None


def options_of(settings: MonitorSettings) -> Options:
    """The options; `UsageError` with near names for one that does not exist."""
    known = {item.name for item in fields(Options)}
    for name in settings:
        if name not in known:
            raise unknown_name("setting", name, known)
    taken: dict[str, Any] = dict(settings)
    if isinstance(taken.get("metrics"), str):
        taken["metrics"] = (taken["metrics"],)
    return Options(**taken)
