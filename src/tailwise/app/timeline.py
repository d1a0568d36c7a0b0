"""Runs over time as charts: medians of roles, the loss, and where alarms stand."""

from __future__ import annotations

from collections.abc import Sequence

from tailwise.app.figures import encoded
from tailwise.history.store import History
from tailwise.report.charts.timeline import Look, Marks, scalars_chart, series_chart
from tailwise.report.theme import TOKENS


def _marks(history: History, run: str) -> Marks:
    return [(kept.alarm.step, kept.alarm.rule, kept.alarm.severity) for kept in history.kept_alarms(run)]


def series_spec(history: History, run: str, metric: str) -> bytes:
    """A metric over time, by role."""
    lines, marks = history.series(run, [metric]), _marks(history, run)
    return encoded(lambda: series_chart(lines, metric, marks, TOKENS))


def scalars_spec(history: History, run: str, look: Look, beside: Sequence[str] = ()) -> bytes:
    """Scalars of the whole model over time, other runs beside."""
    lines, marks = history.scalars(run), _marks(history, run)
    others = {name: history.scalars(name) for name in beside if name != run}
    return encoded(lambda: scalars_chart(lines, marks, TOKENS, look, others))
