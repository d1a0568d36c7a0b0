"""`check()`: an audit against expectations."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median

from tailwise.audits.audit import Audit, AuditLike
from tailwise.audits.codec import MEMBERS
from tailwise.audits.of_adapter import adapter_mode
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import OF_FIT, doubt, estimator_of, usable, usable_values, value_of
from tailwise.checkpoints.within import stays_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import shortened
from tailwise.core.kept import kept_property
from tailwise.core.validation import checked
from tailwise.judging.compare.compare_audits import TESTED, comparable, compare
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta
from tailwise.judging.compare.summary import model_numbers
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis
from tailwise.judging.gates.expectation import CheckResult, Expectation, ExpectationOutcome, Status, Violation
from tailwise.judging.gates.parse import Expectations, read_expectations

_OF_CHANGE = (
    "what was measured is the adapter's change ΔW alone, not the model with it; for that audit it with "
    "--adapter merged, and check the audit"
)
#: Statuses of matrices that should have numbers and do not.
BROKEN = ("NOT_FINITE", "UNREADABLE", "FAILED")


@checked
def check(
    audit: AuditLike, expectations: Expectations | str | Path, *, baseline: Audit | str | Path | None = None
) -> CheckResult:
    """Hold an audit, or the one at a path, against expectations.

    Parameters
    ----------
    expectations
        A TOML file, or what `read_expectations` made of one.
    baseline
        For expectations of change that name no audit of their own; it goes before the file's own `baseline`.

    An expectation that matches no layer, or whose metric the audit lacks, could not be looked at, and that is not a
    pass. A matrix that could not be measured (NaN, unreadable) fails every expectation that means it.

    >>> import numpy as np, tailwise as tw
    >>> audit = tw.audit({"up.weight": np.random.default_rng(0).standard_normal((96, 64))}, use_cache=False)
    >>> gate = tw.gates.parse_expectations('expect = ["stable_rank > 10", "alpha < 2"]', "here")
    >>> tw.check(audit, gate)
    CheckResult('dict': 1 of 2 expectations hold)
    """
    audit = Audit.of(audit)
    read = expectations if isinstance(expectations, Expectations) else read_expectations(expectations)
    context = _Context(audit, read, baseline)
    outcomes = tuple(_LOOK[item.kind](f"E{i}", item, context) for i, item in enumerate(read.items, 1))
    notes = (_OF_CHANGE,) if adapter_mode(audit) == "delta" else ()
    return CheckResult(audit.model, read.source, outcomes, tuple(context.baselines), notes)


class _Context:
    """What several expectations share: the baselines, the comparisons and the diagnosis, each made once."""

    def __init__(self, audit: Audit, read: Expectations, baseline: Audit | str | Path | None) -> None:
        self.audit, self._read, self._given = audit, read, baseline
        self._audits: dict[str, Audit] = {}
        self._comparisons: dict[str, Comparison] = {}
        self.baselines: dict[str, None] = {}

    def baseline(self, item: Expectation) -> Audit:
        chosen = item.baseline or self._given or self._read.baseline
        if chosen is None:
            raise UsageError(
                f"{item.text!r} needs a baseline",
                where=f"{self._read.source}, line {item.line}",
                fix='give --baseline base.audit, or write baseline = "base.audit" into the file',
            )
        if isinstance(chosen, Audit):
            self.baselines[chosen.model] = None
            return chosen
        # A path on the command line is the caller's; one in a file is relative to that file.
        path = Path(chosen) if chosen is self._given else self._beside(item, str(chosen))
        self.baselines[str(path)] = None
        if str(path) not in self._audits:
            self._audits[str(path)] = Audit.load(path)
        return self._audits[str(path)]

    def _beside(self, item: Expectation, name: str) -> Path:
        """The audit that the file names, which lies in its folder: a gate of somebody else opens no audit elsewhere."""
        home = Path(self._read.source).parent
        path = home / name
        if not all(stays_within(home, part) for part in (path, *(path / member for member in MEMBERS))):
            raise UnreadableError(
                f"the baseline {shortened(name, 200)!r} lies outside the folder of the expectations",
                where=f"{self._read.source}, line {item.line}",
                fix="leave it out there and give it with --baseline AUDIT, or put the audit beside the file",
            )
        return path

    def comparison(self, item: Expectation) -> Comparison:
        base = self.baseline(item)
        key = str(id(base))
        if key not in self._comparisons:
            self._comparisons[key] = compare(base, self.audit)
        return self._comparisons[key]

    def diagnosis(self, mute: tuple[str, ...]) -> Diagnosis:
        from tailwise.judging.diagnosis.diagnose import diagnose

        return diagnose(self.audit, mute=mute)

    @kept_property
    def numbers(self) -> dict[str, float | None]:
        return model_numbers(self.audit)


def _look_at_metric(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    rows = [row for row in context.audit.rows if item.takes(row.name, row.role)]
    if any(row.measured for row in rows) and all(item.subject not in row.metrics for row in rows if row.measured):
        return _blind(key, item, f"the audit has no {item.subject}; audit with --metrics {item.subject}")
    kind = estimator_of(context.audit)
    stated = [row for row in rows if item.subject in OF_FIT and value_of(row, item.subject) is not None]
    doubted = {row.name for row in stated if doubt(row, kind)}
    values = {row.name: usable(row, item.subject, kind) for row in rows}
    known = {name: value for name, value in values.items() if value is not None}
    kept = [row for row in rows if row.name not in doubted]
    return _layer_outcome(key, item, kept, known, _untrusted(item.subject, len(doubted)))


def _look_at_median(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    """The median of every role that is meant, each against the bounds."""
    rows = [row for row in context.audit.rows if row.measured and item.takes(row.name, row.role)]
    if rows and all(item.subject not in row.metrics for row in rows):
        return _blind(key, item, f"the audit has no {item.subject}; audit with --metrics {item.subject}")
    failed, looked, said, lost = [], 0, [], 0
    for role in dict.fromkeys(row.role for row in rows):
        group = [row for row in rows if row.role == role]
        values = usable_values(context.audit, item.subject, group)
        lost += len(group) - len(values)
        if values:
            middle = median(values)
            looked += len(values)
            said.append(f"{role} {middle:.4g}")
            message = f"the median {item.subject} of {role} is {middle:.4g}, expected {item.bounds}"
            failed += [] if item.bounds.holds(middle) else [Violation(role, message, middle)]
    if not looked:
        return _blind(key, item, "no layer has a value to take a median of" + _absent(item, rows))
    left = f"; {counted(lost)} left out, without a value or a trusted fit" if lost else ""
    status: Status = "failed" if failed else "passed"
    return ExpectationOutcome(key, item, status, ", ".join(said) + left + _absent(item, rows), looked, tuple(failed))


def _absent(item: Expectation, rows: Sequence[LayerRow]) -> str:
    """Roles that were named and that no layer has."""
    gone = [role for role in item.roles if role not in {row.role for row in rows}]
    return f"; no layer has the role {' or '.join(gone)}" if gone else ""


def _untrusted(subject: str, count: int) -> str:
    """How many fits no verdict was read off."""
    return f"; {subject} of {counted(count)} is no trusted fit and was not looked at" if count else ""


def _look_at_delta(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    base = context.baseline(item)
    if item.subject in TESTED and not comparable(item.subject, base, context.audit):
        return _blind(key, item, f"{item.subject} is fitted differently in the baseline; audit both with one recipe")
    found = context.comparison(item)
    layers = [layer for layer in found.layers if item.takes(layer.name, layer.role)]
    doubted = [layer.name for layer in layers if item.subject in OF_FIT and not layer.trusted and _changed(layer, item)]
    layers = [layer for layer in layers if layer.name not in doubted]
    rows = {row.name: row for row in context.audit.rows if item.takes(row.name, row.role)}
    changes = {layer.name: layer.deltas[item.subject] for layer in layers if item.subject in layer.deltas}
    gone = _gone(item, found, base)
    if rows and not changes and not doubted and not gone:
        return _blind(key, item, f"neither audit has {item.subject}; audit with --metrics {item.subject}")
    known = {
        name: abs(delta.change) if item.absolute else delta.change
        for name, delta in changes.items() if delta.change is not None
    }  # fmt: skip
    # Defined on one side alone is a change too, and none that a number could say.
    gone += [
        Violation(name, f"{name} has {item.subject} on one side alone ({_side(delta)})")
        for name, delta in changes.items() if delta.change is None and (delta.before, delta.after) != (None, None)
    ]  # fmt: skip
    told = {one.layer for one in gone}
    looked_at = [row for row in rows.values() if row.name not in told and (row.name in changes or row.status in BROKEN)]
    return _layer_outcome(key, item, looked_at, known, _untrusted(item.subject, len(doubted)), gone)


def _changed(layer: LayerDelta, item: Expectation) -> bool:
    return item.subject in layer.deltas and layer.deltas[item.subject].change is not None


def _side(delta: Delta) -> str:
    before, after = ("none" if value is None else f"{value:.4g}" for value in (delta.before, delta.after))
    return f"before {before}, after {after}"


def _gone(item: Expectation, found: Comparison, base: Audit) -> list[Violation]:
    """Layers of the baseline that have no counterpart to subtract, and layers that the baseline has not."""
    roles = {row.name: row.role for row in base.rows}
    said = [Violation(name, f"{name} is missing") for name in found.missing if item.takes(name, roles.get(name, ""))]
    said += [
        Violation(name, f"{name} was {old} and is {new}, so that its change is none")
        for name, old, new in found.reshaped if item.takes(name, roles.get(name, ""))
    ]  # fmt: skip
    return said


def _layer_outcome(
    key: str, item: Expectation, rows: list[LayerRow], values: Mapping[str, float], untrusted: str = "",
    gone: Sequence[Violation] = (),
) -> ExpectationOutcome:  # fmt: skip
    """Every row against the bounds: rows that broke or are `gone`, or whose tail has no spread, count as failed."""
    failed, looked = list(gone), len(gone)
    for row in rows:
        violation = _violation(item, row, values.get(row.name))
        looked += row.name in values or violation is not None
        failed += [violation] if violation is not None else []
    if not looked:
        none = "no fit is trusted" if untrusted else "it matches no measured layer"
        what = "no layer has a value" if any(row.measured for row in rows) else none
        return _blind(key, item, what + untrusted)
    failed.sort(key=lambda one: -_distance(item, one.value))
    status = "passed" if len(failed) <= item.allow * looked + 1e-9 else "failed"
    message = f"{len(failed)} of {counted(looked)} outside" if failed else f"{counted(looked)} within"
    message += untrusted + _absent(item, rows)
    return ExpectationOutcome(key, item, status, message, looked, tuple(failed))  # type: ignore[arg-type]


def _violation(item: Expectation, row: LayerRow, value: float | None) -> Violation | None:
    if row.status in BROKEN:
        return Violation(row.name, f"{row.name} was not measured ({row.status}: {row.reason})")
    if value is None:
        collapsed = row.measured and (item.subject in row.degenerate or row.status == "DEGENERATE")
        missing = collapsed and item.subject.startswith("alpha")
        return Violation(row.name, f"{row.name} has no {item.subject}: {row.reason}") if missing else None
    if item.bounds.holds(value):
        return None
    subject = f"Δ {item.subject}" if item.kind == "delta" else item.subject
    subject = f"|{subject}|" if item.absolute else subject
    error = row.metrics.get(f"{item.subject}_sigma") if item.kind == "metric" else None
    shown = f"{value:.4g}" + (f" ± {error:.2g}" if error else "")
    return Violation(row.name, f"{row.name}: {subject} is {shown}, expected {item.bounds}", value)


def counted(count: int) -> str:
    """`1 layer`, `8 layers`."""
    return f"{count} layer{'' if count == 1 else 's'}"


def _distance(item: Expectation, value: float | None) -> float:
    if value is None:
        return float("inf")
    low, high = item.bounds.low, item.bounds.high
    return max(low - value if low is not None else 0.0, value - high if high is not None else 0.0)


def _look_at_summary(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    value = context.numbers[item.subject]
    if value is None:
        return _blind(key, item, f"the audit has no {item.subject}")
    if item.bounds.holds(value):
        return ExpectationOutcome(key, item, "passed", f"{item.subject} is {value:.4g}", 1)
    message = f"{item.subject} is {value:.4g}, expected {item.bounds}"
    return ExpectationOutcome(key, item, "failed", message, 1, (Violation("", message, value),))


def _look_at_findings(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    found = context.diagnosis(item.mute)
    allowed = -1 if item.severity is None else SEVERITIES.index(item.severity)
    above = [finding for finding in found.findings if SEVERITIES.index(finding.severity) > allowed]
    violations = tuple(
        Violation(layer, f"{finding.code} {finding.title} ({finding.severity}): {finding.message}")
        for finding in above
        for layer in (finding.layers[:20] or ("",))
    )
    looked = f"{len(found.looked)} rules evaluated, {len(found.not_looked)} not evaluated"
    if not above:
        return ExpectationOutcome(key, item, "passed", looked, len(context.audit))
    return ExpectationOutcome(
        key, item, "failed", f"{', '.join(f.code for f in above)}; {looked}", len(context.audit), violations
    )


def _look_at_layers(key: str, item: Expectation, context: _Context) -> ExpectationOutcome:
    found = context.comparison(item)
    violations = [Violation(name, f"{name} is missing") for name in found.missing]
    violations += [Violation(name, f"{name} was added") for name in found.added]
    violations += [Violation(name, f"{name} was {old} and is {new}") for name, old, new in found.reshaped]
    violations += [Violation(new, f"{old} is now called {new}") for old, new in found.renamed]
    once = {layer.row.name for layer in context.baseline(item)}
    lost = [row for row in context.audit.unmeasured if row.name.removesuffix(".weight") in once or row.status in BROKEN]
    violations += [Violation(row.name, f"{row.name} was not measured ({row.status}: {row.reason})") for row in lost]
    status = "failed" if violations else "passed"
    message = (
        f"{counted(len(violations))} changed" if violations else f"{counted(len(found.layers))}, as in the baseline"
    )
    return ExpectationOutcome(key, item, status, message, len(context.audit), tuple(violations))  # type: ignore[arg-type]


def _blind(key: str, item: Expectation, why: str) -> ExpectationOutcome:
    return ExpectationOutcome(key, item, "not_evaluated", f"not evaluated: {why}")


_LOOK: Mapping[str, Callable[[str, Expectation, _Context], ExpectationOutcome]] = {
    "metric": _look_at_metric,
    "median": _look_at_median,
    "delta": _look_at_delta,
    "summary": _look_at_summary,
    "finding": _look_at_findings,
    "layers": _look_at_layers,
}
