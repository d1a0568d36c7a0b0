"""A chart is one decorated function from a `ChartView` to an Altair chart; its guidance is written once, beside it."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get, missing
from tailwise.core.registry import Registry
from tailwise.spectrum.metrics.metric import METRICS

if TYPE_CHECKING:
    from tailwise.report.charts.view import ChartView

#: What a chart is drawn of: one audit, one of its layers, several audits, or an audit and its base.
Scope = Literal["audit", "layer", "several", "base"]

_BUILT_IN = ("alpha", "randomized", "balance", "depth", "heat", "layer", "several", "base")
_OPTIONS = {"permuted": "--randomize", "permuted_bulks": "--randomize", "permuted_tails": "--randomize",
            "interval": "--bootstrap 200", "rivals": "--rivals"}  # fmt: skip


@dataclass(frozen=True)
class Guidance:
    """How to read a chart: the one text for its subtitle, its caption in a report, and its documentation."""

    reading: str  # what is drawn
    good: str
    bad: str
    note: str = ""  # a limit of the reading

    @property
    def text(self) -> str:
        """All of it, as prose."""
        return " ".join(part for part in (self.reading, f"Good: {self.good}", f"Bad: {self.bad}", self.note) if part)


@dataclass(frozen=True)
class Chart:
    """A named chart."""

    name: str
    family: str
    scope: Scope
    title: str
    needs: tuple[str, ...]  # metrics that the audit must have
    guidance: Guidance
    function: Callable[[ChartView], Any]

    @property
    def summary(self) -> str:
        """The first line of the function's docstring."""
        return (inspect.getdoc(self.function) or "").split("\n", 1)[0]

    def missing(self, view: ChartView) -> tuple[str, ...]:
        """The metrics that this chart needs and the audits do not have."""
        return tuple(name for name in self.needs if not view.has(name))

    def draw(self, view: ChartView, *, titled: bool = True) -> Any:
        """The Altair chart, with its data, and with title and guidance unless a page has them beside it.

        Raises `UsageError` where a metric is missing, or there is nothing to draw.
        """
        if absent := self.missing(view):
            raise _nothing(self.name, absent, view)
        view.datasets = {}
        figure = self.function(view)
        if titled:
            lines = [line for part in view.notes(self.guidance) for line in textwrap.wrap(part, int(view.width / 5.8))]
            figure = figure.properties(title={"text": view.title(self.title, self.scope), "subtitle": lines})
        return figure


def _nothing(name: str, absent: Sequence[str], view: ChartView) -> UsageError:
    """Why a chart cannot be drawn: metrics that were not asked for, or that no layer has a value of."""
    where = view.audit.model
    if asked := [metric for metric in absent if not view.knows(metric)]:
        said = f"the chart {name} needs {', '.join(asked)}, which this audit does not have"
        return UsageError(said, where=where, fix=remedy(asked))
    said = f"the chart {name} has nothing to draw: no layer has a value of {', '.join(absent)}"
    return UsageError(
        said, where=where, fix="`tailwise show AUDIT --layer NAME` says why (a tail without spread, zeros)"
    )


def remedy(metrics: Sequence[str]) -> str:
    """What provides the metrics that are missing."""
    options = dict.fromkeys(
        _OPTIONS.get(need, "") for name in metrics if name in METRICS for need in METRICS[name].needs
    )
    named = [option for option in options if option]
    return f"run `tailwise audit MODEL {' '.join(named) or '--metrics ' + ','.join(metrics)}`"


def _load_built_ins() -> None:
    require_altair()
    for family in _BUILT_IN:
        import_module(f"tailwise.report.charts.{family}")
    CHARTS.sort(lambda item: _BUILT_IN.index(item.family) if item.family in _BUILT_IN else len(_BUILT_IN))


CHARTS: Registry[Chart] = Registry("chart", "tailwise.charts", _load_built_ins)


def chart(
    name: str, *, title: str, guidance: Guidance, needs: tuple[str, ...] = (), scope: Scope = "audit"
) -> Callable[[Callable[[ChartView], Any]], Callable[[ChartView], Any]]:
    """Register the decorated function as a chart."""

    def register(function: Callable[[ChartView], Any]) -> Callable[[ChartView], Any]:
        family = function.__module__.rsplit(".", 1)[-1]
        CHARTS.add(name, Chart(name, family, scope, title, needs, guidance, function), by=function.__module__)
        return function

    return register


def charts_of(scope: Scope) -> list[Chart]:
    """The charts of one scope, in order."""
    return [item for _, item in CHARTS.items() if item.scope == scope]


def require_altair() -> None:
    """`UsageError` with the remedy where the optional packages are absent."""
    absent = missing("altair", "vl_convert")
    if absent:
        raise UsageError(f"charts need {' and '.join(absent)}", fix=how_to_get("report"))
