"""What a rule says: a finding with its evidence, or that it was not evaluated."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from tailwise.core.shown import Brief, Shown, brief

if TYPE_CHECKING:
    from tailwise.audits.table import Table

Severity = Literal["info", "warning", "error"]
#: How well the rule itself is founded: derived, correlated with quality in publications, or a rule of thumb.
Strength = Literal["theory", "published", "heuristic"]
SEVERITIES: tuple[Severity, ...] = ("info", "warning", "error")


@dataclass(frozen=True)
class Evidence:
    """One number that crossed a bound."""

    layer: str  # "" where the number is of the whole model
    metric: str
    value: float
    bound: float | None  # what it was held against
    says: str  # in words, with the numbers: "alpha 7.1 ± 0.4 > 6"


@dataclass(frozen=True, repr=False)
class Finding(Brief):
    """One pattern found in a model."""

    code: str  # TW101, …
    title: str  # what is so of how many: "2 of 211 matrices look like noise"
    severity: Severity
    message: str  # one sentence about this model
    layers: tuple[str, ...]  # names, worst first; empty where the finding is of the whole model
    evidence: tuple[Evidence, ...]
    causes: tuple[str, ...]
    remedies: tuple[str, ...]
    references: tuple[str, ...]
    strength: Strength
    functions: tuple[str, ...] = ()  # names in `tailwise.training.remedies`
    pattern: str = ""  # the name of the pattern, the same for every model: "spectrum of noise"

    @property
    def noted(self) -> bool:
        """Whether it is an observation that alone asks for nothing."""
        return self.severity == "info"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    def __repr__(self) -> str:
        return f"Finding({self.code} {self.severity}: {self.title})"


@dataclass(frozen=True)
class NotLooked:
    """A rule that was not evaluated, which is not the same as finding nothing."""

    code: str
    title: str
    reason: str  # what is missing, and which option would provide it


@dataclass(frozen=True, repr=False)
class NotEvaluated(Brief):
    """Layers that a rule left out, though it looked at others."""

    code: str
    title: str
    reason: str
    layers: tuple[str, ...]


Word = Literal["healthy", "needs a look", "unhealthy", "no verdict"]


@dataclass(frozen=True)
class WorstLayer:
    """A layer, and the reason that it is named for."""

    layer: str
    code: str
    severity: str
    reason: str
    more: int = 0  # other findings on it
    stands: str = ""  # where it stands among healthy models

    @property
    def beside(self) -> str:
        """`and 2 more findings`; "" where there is one alone."""
        return f"and {self.more} more finding{'' if self.more == 1 else 's'}" if self.more else ""


@dataclass(frozen=True, repr=False)
class Health(Brief):
    """The verdict on a model."""

    word: Word
    why: str  # one sentence
    worst: tuple[WorstLayer, ...]  # five at most, worst first
    next: str  # a command; AUDIT stands for the audit's file
    named: int = 0  # layers that warnings and errors name, of which `worst` are the worst

    def next_for(self, path: str) -> str:
        """The next command, of an audit at `path`."""
        return self.next.replace("AUDIT", path if re.fullmatch(r"[\w./:@+-]+", path) else f"'{path}'")

    @property
    def worst_words(self) -> str:
        """What the layers are that are named: `The worst 5 of the 12 matrices that findings name:`."""
        if self.named > len(self.worst):
            return f"The worst {len(self.worst)} of the {self.named} matrices that findings name:"
        return "The matrix that findings name:" if len(self.worst) == 1 else "The matrices that findings name:"

    @property
    def line(self) -> str:
        """`needs a look: 2 of 211 matrices look like noise.`"""
        return f"{self.word}: {self.why}"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {**asdict(self), "worst": [asdict(item) for item in self.worst]}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Health:
        """What `to_json` gave."""
        return Health(data["word"], data["why"], tuple(WorstLayer(**item) for item in data["worst"]), data["next"],
                      data.get("named", 0))  # fmt: skip


@dataclass(frozen=True, repr=False)
class Diagnosis(Brief):
    """Everything the rules said of one audit, worst first."""

    model: str
    findings: tuple[Finding, ...]
    not_looked: tuple[NotLooked, ...] = ()
    looked: tuple[str, ...] = ()  # codes of the rules that looked
    muted: tuple[str, ...] = ()
    thresholds: dict[str, float] = field(default_factory=dict)
    not_evaluated: tuple[NotEvaluated, ...] = ()
    health: Health | None = None  # the verdict in one line
    atlas: int = 0  # healthy models that were compared with

    def of(self, layer: str) -> tuple[Finding, ...]:
        """The findings that name a layer."""
        return tuple(finding for finding in self.findings if layer in finding.layers)

    def table(self) -> Table:
        """One row for each piece of evidence, of the worst finding first: code, severity, layer, metric, value, …"""
        import pyarrow as pa

        from tailwise.audits.table import Table

        rows = [
            {"code": one.code, "severity": one.severity, "finding": one.title, **asdict(item)}
            for one in self.findings
            for item in one.evidence
        ]
        return Table(pa.Table.from_pylist(rows, schema=pa.schema(list(_COLUMNS.items()))))

    @property
    def worst(self) -> Severity | None:
        """The highest severity found."""
        severities = [SEVERITIES.index(finding.severity) for finding in self.findings]
        return SEVERITIES[max(severities)] if severities else None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Diagnosis:
        """What `to_json` gave."""
        findings = tuple(_finding(item) for item in data["findings"])
        not_looked = tuple(NotLooked(**item) for item in data["not_looked"])
        looked, muted = tuple(data["looked"]), tuple(data["muted"])
        parts = data.get("not_evaluated", ())
        left = tuple(NotEvaluated(**{**item, "layers": tuple(item["layers"])}) for item in parts)
        limits, health = dict(data["thresholds"]), data.get("health")
        verdict = Health.from_json(health) if health else None
        return Diagnosis(
            data["model"], findings, not_looked, looked, muted, limits, left, verdict, data.get("atlas", 0)
        )

    def __repr__(self) -> str:
        counts = Counter(one.severity for one in self.findings)
        found = ", ".join(f"{counts[one]} {one}" for one in reversed(SEVERITIES) if counts[one]) or "nothing found"
        verdict = f"{self.health.line} " if self.health else ""
        left = f"{len(self.not_looked)} {'rule' if len(self.not_looked) == 1 else 'rules'} not evaluated"
        return f"Diagnosis({brief(self.model)}: {verdict}{found}; {left})"

    def _shown(self) -> Shown:
        rows = [(one.code, one.severity, one.title, one.message, len(one.layers)) for one in self.findings]
        line = self.health.line if self.health else repr(self)
        return Shown(line, ("code", "severity", "finding", "says", "layers"), rows, "`findings`")


#: Of a table of evidence, with the names that Arrow has for their types.
_COLUMNS = dict.fromkeys(("code", "severity", "finding", "layer", "metric"), "string")
_COLUMNS |= {"value": "float64", "bound": "float64", "says": "string"}


def _finding(data: Mapping[str, Any]) -> Finding:
    evidence = tuple(Evidence(**item) for item in data["evidence"])
    lists = {key: tuple(value) for key, value in data.items() if isinstance(value, list | tuple)}
    return Finding(**{**data, **lists, "evidence": evidence})
