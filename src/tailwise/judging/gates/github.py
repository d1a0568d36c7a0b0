"""Annotations of GitHub Actions: what fails, at the line of its expectation."""

from __future__ import annotations

from collections.abc import Iterator

from tailwise.judging.gates.expectation import CheckResult

_MOST = 10  # of one kind that GitHub shows of a step


def workflow_commands(result: CheckResult) -> Iterator[str]:
    """A workflow command for each expectation that does not hold: an error, or a warning where nobody could look."""
    for outcome in [one for one in result.outcomes if not one.passed][:_MOST]:
        kind = "error" if outcome.status == "failed" else "warning"
        messages = [violation.message for violation in outcome.violations[:_MOST]]
        where = f"file={_property(result.source)},line={max(1, outcome.expectation.line)}"
        text = _data("\n".join([outcome.message, *messages]))
        yield f"::{kind} {where},title={_property(f'{outcome.id}: {outcome.title}')}::{text}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")
