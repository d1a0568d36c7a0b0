"""The charts of a precision study by name; a chart is one decorated function from a `StudyView`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from tailwise.report.charts.chart import Chart, Guidance
from tailwise.report.charts.view import ChartView
from tailwise.report.precision.precision_view import StudyView

Draw = Callable[[StudyView], Any]

#: name → chart. They are of a study alone, so they are not among `CHARTS`, which are of audits.
FIGURES: dict[str, Chart] = {}


def figure(name: str, title: str, guidance: Guidance) -> Callable[[Draw], Draw]:
    """Register the decorated function as a chart of a study."""

    def register(function: Draw) -> Draw:
        FIGURES[name] = Chart(
            name, "precision", "audit", title, (), guidance, cast("Callable[[ChartView], Any]", function)
        )
        return function

    return register
