"""The nouns of a history: `Point`, what was measured of a model at one step, and `Alarm`, what was noticed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tailwise.core.shown import Brief

Cadence = Literal["cheap", "full"]
Severity = Literal["note", "warning", "error"]


@dataclass(frozen=True, repr=False)
class Point(Brief):
    """What was measured of a model at one step of its training."""

    run: str
    step: int
    cadence: Cadence  # cheap: norms of a few products; full: the spectra
    time: float  # seconds since the epoch
    layers: Mapping[str, Mapping[str, float]]  # full name of the matrix → metric → value; names as in an audit
    scalars: Mapping[str, float] = field(default_factory=dict)  # of the whole model: loss, lr, overhead …
    notes: tuple[str, ...] = ()  # layers skipped, reused or not finite, and why

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types; what is not finite is null."""
        return {
            "run": self.run,
            "step": self.step,
            "cadence": self.cadence,
            "time": self.time,
            "layers": {name: _finite(values) for name, values in self.layers.items()},
            "scalars": _finite(self.scalars),
            "notes": list(self.notes),
        }


@dataclass(frozen=True, repr=False)
class Alarm(Brief):
    """Something in a run that a rule over time noticed."""

    run: str
    step: int  # at which it was noticed
    time: float
    rule: str  # code, such as TW701
    severity: Severity
    title: str  # one line
    layers: tuple[str, ...] = ()  # full names; empty: the whole model
    evidence: Mapping[str, float] = field(default_factory=dict)
    since: int | None = None  # the step at which it is believed to have begun
    remedies: tuple[str, ...] = ()  # names of functions in `tailwise.remedies`

    @property
    def key(self) -> tuple[str, str, tuple[str, ...]]:
        """Alarms with equal keys are about the same thing, whichever of their layers is the worst and stands first."""
        return self.run, self.rule, tuple(sorted(self.layers))

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {
            "run": self.run,
            "step": self.step,
            "time": self.time,
            "rule": self.rule,
            "severity": self.severity,
            "title": self.title,
            "layers": list(self.layers),
            "evidence": _finite(self.evidence),
            "since": self.since,
            "remedies": list(self.remedies),
        }


@dataclass(frozen=True)
class Resumed:
    """A run went back: it goes on from `step`, and what was written of later steps belongs to a branch that ended."""

    run: str
    step: int  # the last that is kept
    time: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"run": self.run, "step": self.step, "time": self.time}


#: Scalar of a monitor's points: how many alarm rules look at the run.
RULES = "alarm_rules"
#: How a monitor's note begins that says which optimizers train the model.
OPTIMIZER = "optimizer: "
#: How the one begins that says which estimator `alpha` is of, where it is not `ks`.
ESTIMATOR = "estimator: "


def no_alarm(point: Point | None) -> str:
    """What a run without alarms says of itself, by its latest cheap point: silence is good news where rules look."""
    if point is None:
        return "No alarm rule looked at this run: a monitor's points are what they look at."
    count = point.scalars.get(RULES)
    if count is None:
        return "No alarm is kept. Whether a rule looked at this run is not."
    if not count:
        return "No alarm rule looked at this run: its monitor was given rules=()."
    return f"No alarm; {count:.0f} rule{'' if count == 1 else 's'} looked."


def _finite(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: float(value) if math.isfinite(value) else None for name, value in values.items()}
