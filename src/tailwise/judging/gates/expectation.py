"""What is expected, and what came of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

from tailwise.core.layer_patterns import is_found
from tailwise.core.shown import Brief, Shown, brief
from tailwise.judging.diagnosis.finding import Severity

Kind = Literal["metric", "median", "delta", "summary", "finding", "layers"]
Status = Literal["passed", "failed", "not_evaluated"]


@dataclass(frozen=True)
class Bounds:
    """An interval; None is unbounded. A bound that is not part of it is open."""

    low: float | None = None
    high: float | None = None
    low_open: bool = False
    high_open: bool = False

    def holds(self, value: float) -> bool:
        """Whether `value` lies within."""
        above = self.low is None or value > self.low or (value == self.low and not self.low_open)
        return above and (self.high is None or value < self.high or (value == self.high and not self.high_open))

    def __str__(self) -> str:
        if self.low is None and self.high is None:
            return "is anything"
        if self.low is None:
            return f"{'<' if self.high_open else '≤'} {self.high:g}"
        if self.high is None:
            return f"{'>' if self.low_open else '≥'} {self.low:g}"
        return f"in {'(' if self.low_open else '['}{self.low:g}, {self.high:g}{')' if self.high_open else ']'}"


@dataclass(frozen=True)
class Expectation:
    """One line of a gate."""

    kind: Kind
    subject: str = ""  # of metric, median and delta: a metric; of summary: a key of SUMMARIES
    bounds: Bounds = Bounds()
    absolute: bool = False  # of delta: its size counts, not its sign
    severity: Severity | None = None  # of finding: the highest allowed; None: no finding at all
    mute: tuple[str, ...] = ()  # of finding: codes that do not count
    roles: tuple[str, ...] = ()
    layers: str | None = None  # a regular expression, searched in the name
    allow: float = 0.0  # share of the layers that may fail
    baseline: str | None = None  # path of an audit; None: the file's or the command's
    name: str = ""  # the user's own
    line: int = 0  # in the file

    @property
    def text(self) -> str:
        """The expectation in one line."""
        body = self._body()
        where = f" for {', '.join(self.roles)}" if self.roles else ""
        where += f" in layers like {self.layers!r}" if self.layers else ""
        where += f" except {', '.join(self.mute)}" if self.mute else ""
        return body + where + (f", {self.allow:.0%} may fail" if self.allow else "")

    def _body(self) -> str:
        if self.kind == "layers":
            return "the layers of the baseline"
        if self.kind == "finding":
            return "no finding" if self.severity is None else f"no finding above {self.severity}"
        subject = self.subject if self.kind == "metric" else f"{self.kind}.{self.subject}"
        return f"{f'|{subject}|' if self.absolute else subject} {self.bounds}"

    def takes(self, name: str, role: str) -> bool:
        """Whether a layer is meant."""
        return (not self.roles or role in self.roles) and (not self.layers or is_found(self.layers, name))


@dataclass(frozen=True)
class Violation:
    """One layer (or the model, "") that does not meet an expectation."""

    layer: str
    message: str
    value: float | None = None


@dataclass(frozen=True, repr=False)
class ExpectationOutcome(Brief):
    """What came of one expectation."""

    id: str  # "E1" …, in the order of the file
    expectation: Expectation
    status: Status
    message: str
    looked: int = 0  # layers
    violations: tuple[Violation, ...] = ()  # worst first; also those within `allow`

    @property
    def passed(self) -> bool:
        """Whether it holds. What could not be looked at does not."""
        return self.status == "passed"

    @property
    def title(self) -> str:
        """The user's name for it, or its text."""
        return self.expectation.name or self.expectation.text

    def __repr__(self) -> str:
        return f"ExpectationOutcome({self.id} {self.status}: {brief(self.title)})"


@dataclass(frozen=True, repr=False)
class CheckResult(Brief):
    """Every expectation of a gate, in order."""

    model: str
    source: str  # where the expectations stand
    outcomes: tuple[ExpectationOutcome, ...]
    baselines: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()  # what was measured, where it is not the whole model

    @property
    def passed(self) -> bool:
        """Whether all hold."""
        return all(outcome.passed for outcome in self.outcomes)

    @property
    def exit_code(self) -> int:
        """0 where all hold, else 1."""
        return 0 if self.passed else 1

    @property
    def verdict(self) -> str:
        """`3 of 4 expectations hold`."""
        held = sum(outcome.passed for outcome in self.outcomes)
        return f"{held} of {len(self.outcomes)} expectations hold"

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        document = asdict(self)
        for written, outcome in zip(document["outcomes"], self.outcomes, strict=True):
            written["text"] = outcome.expectation.text
        return {"passed": self.passed, "verdict": self.verdict, **document}

    def __repr__(self) -> str:
        return f"CheckResult({brief(self.model)}: {self.verdict})"

    def _shown(self) -> Shown:
        rows = [(one.id, one.status.replace("_", " "), one.title, one.message) for one in self.outcomes]
        return Shown(self.verdict, ("", "status", "expectation", "says"), rows, "`outcomes`")
