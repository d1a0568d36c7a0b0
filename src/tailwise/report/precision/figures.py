"""Every chart of a precision study, by name, as an Altair chart."""

from __future__ import annotations

from typing import Any

from tailwise.audits.precision.study import PrecisionStudy
from tailwise.core.errors import unknown_name
from tailwise.report.charts.chart import require_altair
from tailwise.report.precision import by_format, trade  # noqa: F401 - they register their charts
from tailwise.report.precision.drawing import FIGURES
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.render import spec_of

__all__ = ["FIGURES", "plot_study"]


def plot_study(chart: str, study: PrecisionStudy, **options: Any) -> Any:
    """The named chart of a study as an Altair chart with its data; options are the fields of `StudyView`.

    Raises `UsageError` for an unknown chart or format, and where Altair is not installed.
    """
    require_altair()
    import altair

    if chart not in FIGURES:
        raise unknown_name("chart", chart, FIGURES)
    spec = spec_of(FIGURES[chart], StudyView(study=study, **options))
    datasets = spec.pop("datasets")
    figure = altair.Chart.from_dict(spec)
    # After the validation, which would look at every number.
    figure["datasets"] = datasets
    return figure
