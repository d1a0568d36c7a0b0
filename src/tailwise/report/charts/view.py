"""What a chart is given: audits, options and colours; and where it leaves its data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer
from tailwise.checkpoints.roles import ROLES
from tailwise.core.errors import UsageError
from tailwise.core.kept import kept_property
from tailwise.report.charts.chart import Guidance
from tailwise.report.charts.data import OUTSIDE, Depth, Record, depth_of, layer_records, ordered
from tailwise.report.theme import LIGHT, Palette

if TYPE_CHECKING:
    from tailwise.judging.compare.comparison import Comparison

ORDER = tuple(ROLES)
#: Names of folders and files that say nothing about the model.
_GENERIC = frozenset({"model", "pytorch_model", "checkpoint", "weights", "final", "snapshot", "adapter_model"})


def short_names(audits: Sequence[Audit]) -> list[str]:
    """A short, distinct name for each audit: the last parts of where the model came from."""
    return names_of([audit.model for audit in audits])


def names_of(models: Sequence[str]) -> list[str]:
    """A short, distinct name for each place of a model."""
    parts = [PurePath(model.rstrip("/")).parts or ("model",) for model in models]
    generic = all(PurePath(part[-1]).stem in _GENERIC and len(part) > 1 for part in parts)
    for depth in range(2 if generic else 1, 6):
        names = ["/".join(part[-depth:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    return [f"{part[-1]} #{index + 1}" for index, part in enumerate(parts)]


@dataclass
class ChartView:
    """Everything a chart may ask for."""

    audits: tuple[Audit, ...]
    palette: Palette = field(default_factory=lambda: LIGHT)
    base: Audit | None = None
    layer_name: str | None = None
    metric_name: str | None = None
    width: int = 640
    given_names: tuple[str, ...] = ()  # in place of short ones of the models
    datasets: dict[str, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.audits or not any(len(audit) for audit in self.audits):
            raise UsageError("there is nothing to draw: no layer was measured",
                             fix="`tailwise show AUDIT --unmeasured` says why")  # fmt: skip

    def of_metric(self, name: str | None) -> ChartView:
        """The same view for another metric; what was worked out already is kept."""
        view = copy(self)
        view.metric_name = name
        return view

    @property
    def audit(self) -> Audit:
        """The (first) audit."""
        return self.audits[0]

    @kept_property
    def names(self) -> list[str]:
        """A short name per audit."""
        return list(self.given_names) or short_names(self.audits)

    @kept_property
    def records(self) -> list[Record]:
        """One record per measured layer of every audit."""
        return layer_records(self.audits, self.names)

    @property
    def layers(self) -> Any:
        """The records as the dataset `layers`, which all charts of a page share."""
        return self.data("layers", self.records)

    def data(self, name: str, rows: Sequence[Mapping[str, Any]]) -> Any:
        """Keep `rows` as a dataset and give what a chart refers to it by."""
        import altair as alt

        self.datasets[name] = rows
        return alt.NamedData(name=name)

    def has(self, metric: str) -> bool:
        """Whether any layer has a value."""
        return any(record.get(metric) is not None for record in self.records)

    def knows(self, metric: str) -> bool:
        """Whether it was measured, whether or not a layer has a value."""
        return any(metric in record for record in self.records)

    def values(self, metric: str) -> list[float]:
        """All values of a metric."""
        return [record[metric] for record in self.records if record.get(metric) is not None]

    @kept_property
    def depth(self) -> Depth:
        """The axis from data to labels."""
        return depth_of(self.audits)

    @kept_property
    def roles(self) -> list[str]:
        """Roles that occur, in the table's order."""
        return ordered((record["role"] for record in self.records), ORDER)

    @kept_property
    def panels(self) -> list[str]:
        """One small chart per role, and one for the layers outside the blocks."""
        return ordered((record["panel"] for record in self.records), [*ORDER, OUTSIDE])

    @property
    def estimator(self) -> str:
        """How alpha was fitted."""
        return str(self.audit.provenance.recipe.get("estimator", "ks"))

    @property
    def banded(self) -> bool:
        """Whether the HT-SR bands hold: they were set for the `ks` estimator."""
        return all(audit.provenance.recipe.get("estimator") == "ks" for audit in self.audits)

    @property
    def base_banded(self) -> bool:
        """The same of the base."""
        return self.base is not None and self.base.provenance.recipe.get("estimator") == "ks"

    @kept_property
    def layer(self) -> Layer:
        """The chosen layer; without a choice, the one with the highest alpha."""
        if self.layer_name is not None:
            return self.audit[self.layer_name]
        return max(self.audit, key=lambda layer: layer.row.metrics.get("alpha") or 0.0)

    @kept_property
    def comparison(self) -> Comparison:
        """The audit against its base."""
        from tailwise.judging.compare.compare_audits import compare

        if self.base is None:
            raise UsageError("this chart needs a base to compare with", fix="give --base AUDIT")
        return compare(self.base, self.audit)

    def title(self, text: str, scope: str = "audit") -> str:
        """A chart's title with what is in it."""
        if scope == "layer":
            row = self.layer.row
            return f"{text}: {row.name} ({row.role}, {row.rows}×{row.cols})"
        if scope == "base" and self.base is not None:
            return f"{text}: {' → '.join(short_names([self.base, self.audit]))}"
        return f"{text}: {' · '.join(self.names)}" if len(self.audits) == 1 else text

    def notes(self, guidance: Guidance) -> list[str]:
        """The subtitle: guidance, and what holds for this audit."""
        bands = "" if self.banded else f"No bands: they hold for the ks estimator, and this is {self.estimator}."
        parts = [guidance.reading, f"Good: {guidance.good}", f"Bad: {guidance.bad}"]
        return [part for part in (*parts, guidance.note, bands) if part]
