"""Runs over time as charts: medians of roles, the loss, and where alarms stand."""

from __future__ import annotations

from tailwise.app.figures import encoded
from tailwise.history.store import History
from tailwise.report.charts.timeline import Marks, scalars_chart, series_chart
from tailwise.report.theme import TOKENS


def _marks(history: History, run: str) -> Marks:
    return [(kept.alarm.step, kept.alarm.rule, kept.alarm.severity) for kept in history.kept_alarms(run)]


def series_spec(history: History, run: str, metric: str) -> bytes:
    """A metric over time, by role."""
    return encoded(series_chart(history.series(run, [metric]), metric, _marks(history, run), TOKENS))


def scalars_spec(history: History, run: str) -> bytes:
    """Scalars of the whole model over time."""
    return encoded(scalars_chart(history.scalars(run), _marks(history, run), TOKENS))
