"""A rule is one decorated function of a case: it finds something, finds nothing, or is not evaluated."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import get_args

from tailwise.audits.rows import LayerRow
from tailwise.core.registry import Registry
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.finding import Evidence, Severity, Strength

_BUILT_IN = ("depth", "training", "rank", "scale", "fit", "health")


@dataclass(frozen=True)
class RuleHit:
    """What a rule found; `severity` where this case is worse or milder than the rule's default."""

    message: str
    evidence: tuple[Evidence, ...]  # worst first; its layers are the finding's
    severity: Severity | None = None
    causes: tuple[str, ...] = ()  # more than the rule's own, where this case shows them; they come first
    tested: int | None = None  # matrices that were judged, where those are not all that were measured
    title: str = ""  # in place of "N of M matrices …"
    remedies: tuple[str, ...] | None = None  # in place of the rule's, where more or less is known
    functions: tuple[str, ...] | None = None

    @property
    def layers(self) -> tuple[str, ...]:
        """The layers named by the evidence, worst first."""
        return tuple(dict.fromkeys(item.layer for item in self.evidence if item.layer))


@dataclass(frozen=True)
class Cannot:
    """Why a rule is not evaluated, and what would let it."""

    reason: str


@dataclass(frozen=True)
class Partly:
    """What was found, and the layers that could not be judged: reason → names."""

    found: RuleHit | tuple[RuleHit, ...] | None
    left_out: Mapping[str, tuple[str, ...]]


#: Several findings of one rule are of several severities: what needs a look, and what is only noted.
Verdict = RuleHit | tuple[RuleHit, ...] | Partly | Cannot | None


def by_severity(rows: list[LayerRow], noted: list[LayerRow]) -> tuple[tuple[list[LayerRow], Severity | None], ...]:
    """What has the rule's own severity, and what is only noted, each where there is some."""
    both: tuple[tuple[list[LayerRow], Severity | None], ...] = ((rows, None), (noted, "info"))
    return tuple(part for part in both if part[0])


@dataclass(frozen=True)
class Rule:
    """A named judgement of an audit."""

    code: str
    title: str
    family: str
    summary: str
    severity: Severity
    strength: Strength
    needs: tuple[str, ...]  # metrics
    estimator: str  # that `alpha` must come from, "" where any will do
    causes: tuple[str, ...]
    remedies: tuple[str, ...]
    references: tuple[str, ...]
    judge: Callable[[Case], Verdict]
    functions: tuple[str, ...] = ()  # names in `tailwise.training.remedies` that do what a remedy says
    says: tuple[str, str] | None = None  # what one matrix does, and what several do: "looks …", "look like noise"


def _load_built_ins() -> None:
    for family in _BUILT_IN:
        import_module(f"tailwise.judging.diagnosis.{family}")
    # A family that was imported on its own before must not come first.
    RULES.sort(lambda item: _BUILT_IN.index(item.family) if item.family in _BUILT_IN else len(_BUILT_IN))


RULES: Registry[Rule] = Registry("rule", "tailwise.rules", _load_built_ins)


def rule(  # noqa: PLR0913 - a rule has as many parts
    code: str,
    *,
    title: str,
    severity: Severity,
    strength: Strength,
    needs: Sequence[str] = (),
    estimator: str = "",
    causes: Sequence[str],
    remedies: Sequence[str],
    functions: Sequence[str] = (),
    references: Sequence[str],
    says: tuple[str, str] | None = None,
) -> Callable[[Callable[[Case], Verdict]], Callable[[Case], Verdict]]:
    """Register the decorated function as the rule `code` (two capital letters or more, then three digits).

    `says` completes "1 of 211 matrices" and "2 of 211 matrices" to the title of a finding; without it, the title is
    the rule's. The function takes a `Case` and returns `RuleHit` (or several), `Partly`, `Cannot`, or None for nothing
    found; its docstring is the sign that it looks for. A metric of `needs` that the audit lacks, or another estimator
    of `alpha` than `estimator`, is answered "not evaluated" before the function is called.
    """
    if not re.fullmatch(r"[A-Z]{2,}\d{3}", code):
        raise TypeError(f"{code!r} is not a code such as TW101")
    if severity not in get_args(Severity):
        raise TypeError(f"the severity of {code} is {severity!r}; it is one of {', '.join(get_args(Severity))}")

    def register(function: Callable[[Case], Verdict]) -> Callable[[Case], Verdict]:
        RULES.add(code, Rule(
            code=code, title=title, family=function.__module__.rsplit(".", 1)[-1],
            summary=" ".join((inspect.getdoc(function) or "").split()), severity=severity, strength=strength,
            needs=tuple(dict.fromkeys(needs)), estimator=estimator, causes=tuple(causes), remedies=tuple(remedies),
            references=tuple(references), judge=function, functions=tuple(functions),
            says=says,
        ))  # fmt: skip
        return function

    return register
