"""What charts of evaluations are given: the models of one text, a measure of quality and one of size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.core.kept import kept_property
from tailwise.models.evaluation.candidates import FRONT, QualityMeasure, SameText, ScoredModel, Size, Standing
from tailwise.report.charts.chart import Guidance
from tailwise.report.charts.data import Record, rounded
from tailwise.report.charts.view import ChartView, names_of
from tailwise.report.columns import printable

#: What an axis has room for: beyond, its ends and the steps between them are no numbers. A file may say anything.
_SMALLEST, _LARGEST = 1e-100, 1e100


def names_in(group: SameText) -> list[str]:
    """A short, distinct name for each model; that of its file where models have the same."""
    models = [printable(one.scores.model) for one in group.candidates]
    files = [printable(one.source) for one in group.candidates]
    return files if len(set(models)) < len(models) and len(set(files)) == len(files) else names_of(models)


@dataclass
class EvaluationView(ChartView):
    """Models in the place of audits: what charts ask a `ChartView` for, and each model as a record."""

    audits: tuple[Audit, ...] = ()
    group: SameText = field(kw_only=True)
    measure: QualityMeasure = field(kw_only=True)
    size: Size = field(kw_only=True)

    def __post_init__(self) -> None:
        """A text without models has nothing to draw, which the chart says."""

    @kept_property
    def names(self) -> list[str]:
        """A short name per model."""
        return names_in(self.group)

    @kept_property
    def standings(self) -> tuple[Standing, ...]:
        """Where each stands in quality and size together."""
        return self.group.standings(self.measure, self.size)

    @kept_property
    def records(self) -> list[Record]:
        """One a model that has both numbers, by size; `number` is its line in the table."""
        unit = self.unit[1]
        found = []
        for index, one in enumerate(self.group.candidates):
            size, value = self.size.of(one), self.measure.value(one)
            if size is None or value is None or not self._can_be_drawn(value):
                continue
            low, high = self._ends(one, value)
            found.append(
                {"number": str(index + 1), "name": self.names[index], "size": rounded(size / unit),
                 "value": rounded(value), "low": rounded(low), "high": rounded(high),
                 "standing": "base" if one.is_base else self.standings[index],
                 "front": self.standings[index] == FRONT}
            )  # fmt: skip
        return sorted(found, key=lambda record: (record["size"], record["value"]))

    def _can_be_drawn(self, value: float) -> bool:
        return _SMALLEST <= value <= _LARGEST if self.measure.log else abs(value) <= _LARGEST

    def _ends(self, one: ScoredModel, value: float) -> tuple[float, float]:
        found = self.measure.interval(one)
        if found is None or not all(map(math.isfinite, found)):
            return value, value
        low, high = (min(max(end, -_LARGEST), _LARGEST) for end in found)
        return (max(low, value * 1e-3) if self.measure.log else low), high

    @kept_property
    def unit(self) -> tuple[str, float]:
        """Of the size: its name and how much it is."""
        most = max((size for one in self.group.candidates if (size := self.size.of(one)) is not None), default=0)
        names = (
            ("bytes", "kB", "MB", "GB", "TB") if self.size.key == "bytes" else ("", "thousand", "million", "billion")
        )
        power = 0
        while power + 1 < len(names) and most >= 1000 ** (power + 1):
            power += 1
        return names[power], 1000.0**power

    @property
    def value_title(self) -> str:
        """Of the measure."""
        return f"{self.measure.title} ({self.measure.unit})" if self.measure.unit else self.measure.title

    @property
    def axis_title(self) -> str:
        """Of the size."""
        name = self.unit[0]
        if self.size.key == "bytes":
            return f"size of the weights, {name}"
        return f"{name} {self.size.title}" if name else self.size.title

    def title(self, text: str, scope: str = "audit") -> str:  # noqa: ARG002 - of what a chart is asked for
        """A chart's title with the text."""
        return f"{text}: {self.group.text}"

    def notes(self, guidance: Guidance) -> list[str]:
        """The subtitle."""
        found: Sequence[Any] = (guidance.reading, f"Good: {guidance.good}", f"Bad: {guidance.bad}", guidance.note)
        return [part for part in found if part]
