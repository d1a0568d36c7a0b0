"""An alarm rule is one decorated function of a `AlarmWatch`: it names the layers that show its sign at this point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Unpack, get_args

from tailwise.core.registry import Registry
from tailwise.history.point import Severity
from tailwise.judging.rules import Rule, RuleParts, load, registered
from tailwise.training.alarm_change import Shape
from tailwise.training.alarm_watch import AlarmWatch

_BUILT_IN = ("alarm_rules_run", "alarm_rules_scale", "alarm_rules_spectrum")


@dataclass(frozen=True)
class Sign:
    """That one layer, or the model, shows what a rule looks for."""

    says: str  # the numbers in words
    badness: float  # orders the layers of an alarm, worst first
    evidence: Mapping[str, float]
    metric: str = ""  # whose change point is where it began; "": it began at this step
    shape: Shape = "jump"  # of that change
    severity: Severity | None = None  # where it is worse or milder than the rule's


Signs = Mapping[str, Sign]  # layer → sign; "" is the whole model


@dataclass(frozen=True, kw_only=True)
class AlarmRule(Rule[AlarmWatch, Signs]):
    """A named judgement of a run."""

    severities: ClassVar[tuple[str, ...]] = get_args(Severity)
    example: ClassVar[str] = "TW701"

    severity: Severity
    scalars: tuple[str, ...] = ()  # numbers of the whole model; `needs` are metrics of layers
    each_loss: Callable[[AlarmWatch], Signs] | None = None  # asked of every step's loss

    @property
    def asks_for(self) -> tuple[str, ...]:
        """Everything that a point must have for it to be asked."""
        return (*self.needs, *self.scalars)


ALARM_RULES: Registry[AlarmRule] = Registry(
    "alarm rule", "tailwise.alarms", lambda: load(ALARM_RULES, (f"tailwise.training.{family}" for family in _BUILT_IN))
)


def alarm_rule(
    code: str,
    *,
    severity: Severity,
    scalars: Sequence[str] = (),
    each_loss: Callable[[AlarmWatch], Signs] | None = None,
    **parts: Unpack[RuleParts],
) -> Callable[[Callable[[AlarmWatch], Signs]], Callable[[AlarmWatch], Signs]]:
    """Register the decorated function as the alarm rule `code`; its docstring is the sign that it looks for.

    It is asked at the points that have all of `needs` in some layer and all of `scalars`, and returns the layers that
    show the sign there. What is kept of a run is what some rule needs. `each_loss` is asked after every loss that a
    monitor was told of, whether or not there is a point; it looks at `AlarmWatch.losses`. `parts`: see `RuleParts`.
    """
    return registered(ALARM_RULES, AlarmRule, code, severity=severity, scalars=scalars, each_loss=each_loss, **parts)
