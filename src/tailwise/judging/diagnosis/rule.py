"""A rule is one decorated function of a case: it finds something, finds nothing, or is not evaluated."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Unpack

from tailwise.audits.rows import LayerRow
from tailwise.core.registry import Registry
from tailwise.judging.diagnosis.case import Case
from tailwise.judging.diagnosis.finding import SEVERITIES, Evidence, Severity
from tailwise.judging.rules import Rule, RuleParts, load, registered

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


@dataclass(frozen=True, kw_only=True)
class AuditRule(Rule[Case, Verdict]):
    """A named judgement of an audit."""

    severities: ClassVar[tuple[str, ...]] = SEVERITIES
    example: ClassVar[str] = "TW101"

    severity: Severity
    estimator: str = ""  # that `alpha` must come from, "" where any will do
    says: tuple[str, str] | None = None  # what one matrix does, and what several do: "looks …", "look like noise"


RULES: Registry[AuditRule] = Registry(
    "rule", "tailwise.rules", lambda: load(RULES, (f"tailwise.judging.diagnosis.{family}" for family in _BUILT_IN))
)


def rule(
    code: str,
    *,
    severity: Severity,
    estimator: str = "",
    says: tuple[str, str] | None = None,
    **parts: Unpack[RuleParts],
) -> Callable[[Callable[[Case], Verdict]], Callable[[Case], Verdict]]:
    """Register the decorated function as the rule `code` (two capital letters or more, then three digits).

    `says` completes "1 of 211 matrices" and "2 of 211 matrices" to the title of a finding; without it, the title is
    the rule's. The function takes a `Case` and returns `RuleHit` (or several), `Partly`, `Cannot`, or None for nothing
    found; its docstring is the sign that it looks for. A metric of `needs` that the audit lacks, or another estimator
    of `alpha` than `estimator`, is answered "not evaluated" before the function is called. `parts`: see `RuleParts`.
    """
    return registered(RULES, AuditRule, code, severity=severity, estimator=estimator, says=says, **parts)
