"""What the pictures of a precision study are given: the study as records, formats by bits, colours."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import PurePath

from tailwise.audits.audit import Audit
from tailwise.audits.precision.prediction import Prediction, predictions
from tailwise.audits.precision.study import FELT, MEASURES, LayerStudy, PrecisionStudy
from tailwise.audits.precision.verdict import Bound, Verdict, verdicts
from tailwise.checkpoints.orientation import before_blocks
from tailwise.core.errors import UsageError, unknown_name
from tailwise.core.kept import kept_property
from tailwise.report.charts.chart import Guidance
from tailwise.report.charts.data import OUTSIDE, Depth, Record, ordered, rounded
from tailwise.report.charts.view import ORDER, ChartView
from tailwise.report.columns import printable
from tailwise.report.precision.precision_summary import FormatSummary, by_format, trouble
from tailwise.report.theme import THEMES, TOKENS, Palette, group_of

#: The bits that the picture of one format is nearest to, unless one is named.
_LOW = 4.0
_GOLDEN = 0.6180339887


@dataclass
class StudyView(ChartView):
    """A study in the place of audits: what charts ask a `ChartView` for, and each reading as a record."""

    audits: tuple[Audit, ...] = ()
    study: PrecisionStudy = field(kw_only=True)
    bounds: Sequence[Bound] = ()
    format_name: str | None = None

    def __post_init__(self) -> None:
        if not len(self.study):
            raise UsageError("there is nothing to draw: no layer was measured", where=self.study.model)
        if self.format_name is not None and self.format_name not in self.study.formats:
            raise unknown_name("format", self.format_name, self.study.formats)
        if self.palette is TOKENS:
            self.palette = {**TOKENS, **{name: f"@{name}" for name in self.steps}}
        else:
            theme = next((name for name, palette in THEMES.items() if palette is self.palette), "light")
            self.palette = {**self.palette, **self.themes[theme]}

    @kept_property
    def summaries(self) -> list[FormatSummary]:
        """One a format, the most bits first."""
        return by_format(self.study)

    @kept_property
    def formats(self) -> list[str]:
        """The most bits first."""
        return [item.format for item in self.summaries]

    @kept_property
    def lossy(self) -> list[FormatSummary]:
        """Formats that change the median layer by more than a few of its smallest weights."""
        return [item for item in self.summaries if (item.relative_error or 0.0) > FELT]

    @kept_property
    def low(self) -> str | None:
        """The lossy format that is looked at alone: the one named, or the one nearest to 4 bits."""
        if self.format_name is not None:
            return self.format_name
        known = [item for item in self.lossy if item.bits is not None]
        return min(known, key=lambda item: abs((item.bits or 0.0) - _LOW)).format if known else None

    @kept_property
    def verdicts(self) -> tuple[Verdict, ...]:
        """One a layer."""
        return verdicts(self.study, self.bounds)

    @kept_property
    def predictions(self) -> tuple[Prediction, ...]:
        """All rank correlations of the study."""
        return predictions(self.study)

    @kept_property
    def names(self) -> list[str]:
        """The model, by the last part of where it came from."""
        return [PurePath(self.study.model.rstrip("/")).name or self.study.model]

    @kept_property
    def depth(self) -> Depth:
        """The axis from data to labels."""
        layers = list(self.study)
        blocks = [layer.block for layer in layers if layer.block is not None]
        if not blocks:
            return Depth(0, max(len(layers) - 1, 1), inputs=False, outputs=False, ordinal=True)
        loose = [before_blocks(layer.category, layer.name) for layer in layers if layer.block is None]
        return Depth(min(blocks), max(blocks), inputs=any(loose), outputs=not all(loose), ordinal=False)

    def place(self, layer: LayerStudy, index: int) -> int:
        """Where the layer stands along depth; before the first block and after the last: one step out."""
        if self.depth.ordinal:
            return index
        if layer.block is not None:
            return layer.block
        return self.depth.low - 1 if before_blocks(layer.category, layer.name) else self.depth.high + 1

    @kept_property
    def records(self) -> list[Record]:
        """One record per measured layer."""
        return [
            {
                "name": printable(layer.name),
                "role": layer.category,
                "group": group_of(layer.category),
                "block": layer.block,
                "place": self.place(layer, index),
                "panel": layer.category if layer.block is not None else OUTSIDE,
                "shape": f"{layer.out_features}×{layer.in_features}",
                "status": layer.status,
                "poor": False,
                "alpha": rounded(layer.alpha),
                "alpha_sigma": rounded(layer.alpha_sigma),
                "stable_rank": rounded(layer.stable_rank),
            }
            for index, layer in enumerate(self.study)
        ]

    @kept_property
    def readings(self) -> list[Record]:
        """One record per layer and format; `row` is the format's place, scattered so that layers can be told apart."""
        rows = {name: index for index, name in enumerate(self.formats)}
        records = []
        for index, (layer, record) in enumerate(zip(self.study, self.records, strict=True)):
            scatter = 0.56 * ((index * _GOLDEN) % 1.0 - 0.5)
            for name, reading in layer.readings.items():
                whole = trouble(reading, layer) is None
                records.append(
                    {
                        **record,
                        "format": name,
                        "row": round(rows[name] + scatter, 3),
                        "bits": rounded(reading.bits_per_weight),
                        "alpha_in_format": rounded(reading.alpha) if whole else None,
                        **{measure: rounded(getattr(reading, measure)) for measure in MEASURES},
                        **({} if whole else {"alpha_shift": None}),
                        "alpha_shift_se": rounded(reading.alpha_shift_se),
                    }
                )
        return records

    @kept_property
    def roles(self) -> list[str]:
        """Roles that occur, in the table's order."""
        return ordered((record["role"] for record in self.records), ORDER)

    @property
    def banded(self) -> bool:
        """The HT-SR bands hold for another estimator."""
        return False

    def has(self, metric: str) -> bool:
        """Whether any layer, or any reading of one, has a value."""
        return super().has(metric) or any(record.get(metric) is not None for record in self.readings)

    def title(self, text: str, scope: str = "audit") -> str:  # noqa: ARG002 - a study is the only scope
        """A chart's title with the model."""
        return f"{text}: {self.names[0]}"

    def notes(self, guidance: Guidance) -> list[str]:
        """The subtitle."""
        parts = (guidance.reading, f"Good: {guidance.good}", f"Bad: {guidance.bad}", guidance.note)
        return [part for part in parts if part]

    @kept_property
    def steps(self) -> list[str]:
        """A colour name per format, the fewest bits first."""
        return [f"step.{index}" for index in range(len(self.formats))]

    @kept_property
    def themes(self) -> dict[str, Palette]:
        """Theme → the colours of `steps`, from pale to strong."""
        return {theme: _ramp(palette, self.steps) for theme, palette in THEMES.items()}

    def shades(self, count: int) -> list[str]:
        """So many colours of `steps`, evenly apart, pale to strong."""
        last = len(self.steps) - 1
        return [self.palette[self.steps[round(index * last / max(count - 1, 1))]] for index in range(count)]

    def labels(self, formats: Sequence[str]) -> str:
        """A Vega expression for the tick of each format: name and bits."""
        bits = {item.format: item.bits for item in self.summaries}
        texts = [f"{name} · {bits[name]:.3g}" if bits[name] is not None else name for name in formats]
        return f"{json.dumps(texts, ensure_ascii=False)}[datum.value]"


def _ramp(palette: Palette, names: Sequence[str]) -> Palette:
    low, high = (_rgb(palette[name]) for name in ("heat.low", "heat.high"))
    last = max(len(names) - 1, 1)
    shares = [0.12 + 0.88 * index / last for index in range(len(names))]
    mixed = [[round(a + (b - a) * share) for a, b in zip(low, high, strict=True)] for share in shares]
    return {name: "#" + "".join(f"{part:02x}" for part in color) for name, color in zip(names, mixed, strict=True)}


def _rgb(color: str) -> list[int]:
    return [int(color[start : start + 2], 16) for start in (1, 3, 5)]
