"""An alarm rule is one decorated function of a `AlarmWatch`: it names the layers that show its sign at this point."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import get_args

from tailwise.core.registry import Registry
from tailwise.history.point import Severity
from tailwise.judging.diagnosis.finding import Strength
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


@dataclass(frozen=True)
class AlarmRule:
    """A named judgement of a run."""

    code: str
    title: str
    family: str
    summary: str
    severity: Severity
    strength: Strength
    needs: tuple[str, ...]  # metrics of layers
    scalars: tuple[str, ...]  # of the whole model
    causes: tuple[str, ...]
    remedies: tuple[str, ...]
    functions: tuple[str, ...]  # names in `tailwise.remedies`
    references: tuple[str, ...]
    judge: Callable[[AlarmWatch], Signs]
    each_loss: Callable[[AlarmWatch], Signs] | None = None  # asked of every step's loss


def _load_built_ins() -> None:
    for family in _BUILT_IN:
        import_module(f"tailwise.training.{family}")
    ALARM_RULES.sort(lambda item: int(item.code[2:]) if item.code.startswith("TW") else 1000)


ALARM_RULES: Registry[AlarmRule] = Registry("alarm rule", "tailwise.alarms", _load_built_ins)


def alarm_rule(  # noqa: PLR0913 - a rule has as many parts
    code: str,
    *,
    title: str,
    severity: Severity,
    strength: Strength,
    needs: Sequence[str] = (),
    scalars: Sequence[str] = (),
    causes: Sequence[str],
    remedies: Sequence[str],
    functions: Sequence[str] = (),
    references: Sequence[str],
    each_loss: Callable[[AlarmWatch], Signs] | None = None,
) -> Callable[[Callable[[AlarmWatch], Signs]], Callable[[AlarmWatch], Signs]]:
    """Register the decorated function as the alarm rule `code`; its docstring is the sign that it looks for.

    It is asked at the points that have all of `needs` in some layer and all of `scalars`, and returns the layers that
    show the sign there. What is kept of a run is what some rule needs. `each_loss` is asked after every loss that a
    monitor was told of, whether or not there is a point; it looks at `AlarmWatch.losses`.
    """
    if not re.fullmatch(r"[A-Z]{2,}\d{3}", code):
        raise TypeError(f"{code!r} is not a code such as TW701")
    if severity not in get_args(Severity):
        raise TypeError(f"the severity of {code} is {severity!r}; it is one of {', '.join(get_args(Severity))}")

    def register(function: Callable[[AlarmWatch], Signs]) -> Callable[[AlarmWatch], Signs]:
        ALARM_RULES.add(code, AlarmRule(
            code=code, title=title, family=function.__module__.rsplit("_", 1)[-1],
            summary=" ".join((inspect.getdoc(function) or "").split()), severity=severity, strength=strength,
            needs=tuple(needs), scalars=tuple(scalars), causes=tuple(causes), remedies=tuple(remedies),
            functions=tuple(functions), references=tuple(references), judge=function,
            each_loss=each_loss,
        ), by=function.__module__)  # fmt: skip
        return function

    return register
