"""A run over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tailwise.checkpoints.roles import ROLES
from tailwise.core.errors import UsageError
from tailwise.history.doubted import left_out_words
from tailwise.report.charts.data import ordered, rounded
from tailwise.report.theme import SHAPES, Palette, group_of, role_color

#: Alarms: (step, code, severity).
Marks = Sequence[tuple[int, str, str]]
WIDTH, HEIGHT = 640, 260
#: Scalars that are drawn, in this order, where a run has them.
SCALARS = ("loss", "val_loss", "eval_loss", "lr", "learning_rate", "grad_norm")
_MOST_STEPS = 800  # more points than pixels say nothing
_MOST_LINES, _MOST_POINTS = 400, 12_000  # layers with a line of their own, and their points together
#: 500 and 5,000 as they are; of tens of thousands 50k.
_STEP = "datum.value < 10000 ? format(datum.value, ',') : format(datum.value, '~s')"
_SEVERITY = {"error": "worse", "warning": "contrast", "note": "muted", "info": "muted"}


def series_chart(table: pa.Table, metric: str, marks: Marks, palette: Palette, fits: tuple[int, int] = (0, 0)) -> Any:
    """The median of every role as a line, the middle half of its layers as a band, and alarms as dashed rules.

    Every layer has a line of its own, which shows where the pointer is. `table` is what `History.series` gives, without
    the exponents that are not trusted; `fits`: how many those are, and of how many (`history.doubted`), which the chart
    says. `UsageError` where there is nothing to draw.
    """
    import altair as alt

    rows, (lost, of) = _quantiles(table, metric), fits
    if not rows:
        raise UsageError(f"no verdict (0 of {of} fits trusted)" if lost else f"the run has no {metric}")
    roles = ordered((row["role"] for row in rows), tuple(ROLES))
    colors = alt.Scale(domain=roles, range=[role_color(role, palette) for role in roles])
    shapes = alt.Scale(domain=roles, range=[SHAPES[group_of(role)] for role in roles])
    legend = alt.Legend(title=None, columns=6, symbolOpacity=1)
    base = alt.Chart(alt.NamedData(name="series"))
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=8, labelExpr=_STEP))
    scale = alt.Scale(zero=False, nice=True)
    color = alt.Color("role:N", scale=colors, sort=roles, legend=legend)
    tips = [alt.Tooltip(name) for name in ("role:N", "step:Q", "layers:Q")]
    numbers = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("median", "low", "high")]
    y = alt.Y("median:Q", title=metric, scale=scale)
    layers = [
        base.mark_area(opacity=0.14).encode(x=x, y=alt.Y("low:Q", scale=scale, title=metric), y2="high:Q", color=color),
        base.mark_line(strokeWidth=2).encode(x=x, y=y, color=color),
        base.mark_point(size=26, filled=True, opacity=0.9).encode(
            x=x, y=y, color=color, shape=alt.Shape("role:N", scale=shapes, sort=roles, legend=legend),
            tooltip=[*tips, *numbers]),
        *_alarms(marks, palette),
    ]  # fmt: skip
    own = _layer_lines(table, metric)
    if own:
        layers += _pointed_at(x, scale, color)
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    if lost:
        # In two lines, since a title is not wrapped and a phone is narrow.
        first, _, rest = left_out_words(lost, of).partition(", and ")
        said = [f"{first},", f"and {rest}"]
        look: dict[str, Any] = {"fontSize": 11, "fontWeight": "normal", "color": palette["muted"], "offset": 6}
        chart = chart.properties(title=alt.Title(said, **look))
    chart["datasets"] = {"series": rows, "alarms": _rows(marks), **({"lines": own} if own else {})}
    return chart


def _pointed_at(x: Any, scale: Any, color: Any) -> list[Any]:
    """The line of the layer that the pointer is nearest to, and its name."""
    import altair as alt

    source = alt.Chart(alt.NamedData(name="lines"))
    near = alt.selection_point(name="near", fields=["layer"], on="pointerover", nearest=True, clear="pointerout",
                               empty=False)  # fmt: skip
    y = alt.Y("value:Q", scale=scale)
    tips = [alt.Tooltip("layer:N"), alt.Tooltip("role:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4~g")]
    line = source.mark_line(strokeWidth=2.4).encode(
        x=x, y=y, color=color, detail="layer:N", opacity=alt.condition(near, alt.value(1), alt.value(0))
    )
    dots = source.mark_point(size=40, opacity=0).encode(x=x, y=y, color=color, tooltip=tips).add_params(near)
    return [line, dots]


@dataclass(frozen=True)
class Look:
    """How scalars are shown."""

    log: bool = False  # the axis of a loss that is above 0
    smooth: float = 0.0  # weight of what was before in an exponential mean, from 0 to below 1; the points stay

    def __post_init__(self) -> None:
        """Raise `UsageError` for a weight that is none."""
        if not 0 <= self.smooth < 1:
            raise UsageError(f"the smoothing is {self.smooth}", fix="give a weight from 0 to below 1, e.g. 0.9")


def scalars_chart(
    table: pa.Table,
    marks: Marks,
    palette: Palette,
    look: Look | None = None,
    beside: Mapping[str, pa.Table] | None = None,
) -> Any:
    """Loss, learning rate and their like, one above the other, with other runs beside; dragging and the wheel zoom.

    `beside`: name → the scalars of another run. `UsageError` where the run has none of them.
    """
    import altair as alt

    look, runs = look or Look(), {"": table, **(beside or {})}
    names = [name for name in SCALARS if _has(table, name)]
    if not names:
        raise UsageError("the run has no loss", fix="log it: monitor.step(loss=…)")
    parts, datasets = [], {"alarms": _rows(marks)}
    for name in names:
        rows = [row for run, own in runs.items() if _has(own, name) for row in _scalar(own, name, run, look)]
        datasets[name] = rows
        source = alt.Chart(alt.NamedData(name=name))
        x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=8, labelExpr=_STEP))
        y = alt.Y("shown:Q", title=name, scale=_scale(name, rows, look), axis=alt.Axis(tickCount=4, format=".3~g"))
        tips = [alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title=name, format=".5~g")]
        color: Any = alt.value(palette["accent"])
        if len(runs) > 1:
            # Blue, orange, … as several models have them: the run of the page comes first.
            shades = [palette["accent"], palette["contrast"], palette["worse"], palette["muted"]]
            own = "datum.label == '' ? 'this run' : datum.label"
            legend = alt.Legend(title=None, orient="top", labelExpr=own, columns=4) if name == names[0] else None
            color = alt.Color("run:N", scale=alt.Scale(domain=list(runs), range=shades), legend=legend)
            tips.append(alt.Tooltip("run:N"))
        line = source.mark_line(strokeWidth=1.8).encode(x=x, y=y, color=color)
        dots = source.mark_point(filled=True, size=14).encode(x=x, y=y, color=color, tooltip=tips)
        zoom = alt.selection_interval(bind="scales", encodings=["x"], name=f"zoom_{names.index(name)}")
        height = 180 if "loss" in name else 90
        layered = alt.layer(line.add_params(zoom), dots, *_alarms(marks, palette))
        parts.append(layered.properties(width=WIDTH, height=height))
    chart = alt.vconcat(*parts, spacing=12) if len(parts) > 1 else parts[0]
    chart["datasets"] = datasets
    return chart


def _has(table: pa.Table, name: str) -> bool:
    return name in table.column_names and table[name].null_count < table.num_rows


def _scalar(table: pa.Table, name: str, run: str, look: Look) -> list[dict[str, Any]]:
    values = zip(table["step"].to_pylist(), table[name].to_pylist(), strict=True)
    rows = [{"step": step, "value": rounded(value)} for step, value in values if value is not None]
    rows = [row for row in rows if row["value"] is not None]
    mean, weight = 0.0, 0.0
    for row in rows:
        mean, weight = look.smooth * mean + (1 - look.smooth) * row["value"], look.smooth * weight + 1 - look.smooth
        # Divided by what has been weighed so far, or the first points would be drawn to 0 (Kingma & Ba 2015).
        row["shown"] = rounded(mean / weight)
        row["run"] = run
    return _thinned(rows)


def _scale(name: str, rows: Sequence[dict[str, Any]], look: Look) -> Any:
    import altair as alt

    values = [row["shown"] for row in rows]
    low, high = min(values), max(values)
    if look.log and "loss" in name and low > 0:
        return alt.Scale(type="log", zero=False, nice=False)
    if low == high and low != 0:
        # A constant stands in the middle, and its own value beside it.
        return alt.Scale(domain=sorted((0.5 * low, 1.5 * low)), nice=False)
    return alt.Scale(zero=False)


def _alarms(marks: Marks, palette: Palette) -> list[Any]:
    import altair as alt

    if not marks:
        return []
    levels = list(_SEVERITY)
    inks = [palette[_SEVERITY[one]] for one in levels]
    color = alt.Color("severity:N", legend=None, scale=alt.Scale(domain=levels, range=inks))
    source = alt.Chart(alt.NamedData(name="alarms"))
    tips = [alt.Tooltip(name) for name in ("code:N", "severity:N", "step:Q")]
    return [source.mark_rule(strokeDash=[3, 3], strokeWidth=1.3).encode(x="step:Q", stroke=color, tooltip=tips)]


def _rows(marks: Marks) -> list[dict[str, Any]]:
    return [{"step": step, "code": code, "severity": severity} for step, code, severity in marks]


def _quantiles(table: pa.Table, metric: str) -> list[dict[str, Any]]:
    """Role and step → median and quartiles over the layers; of many steps, evenly spaced ones."""
    there = table.filter(pc.is_valid(table[metric]))
    steps = np.unique(there["step"].to_numpy())
    if len(steps) > _MOST_STEPS:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, _MOST_STEPS).round().astype(int))]
        there = there.filter(pc.is_in(there["step"], pa.array(steps)))
    plain = pa.table({"step": there["step"], "role": there["role"].cast(pa.string()), "value": there[metric]})
    grouped = plain.group_by(["step", "role"], use_threads=False).aggregate([("value", "list")])
    rows = []
    for step, role, values in zip(*(grouped[name].to_pylist() for name in ("step", "role", "value_list")), strict=True):
        known = [value for value in values if value == value]  # noqa: PLR0124 - NaN is not itself
        if known:
            low, middle, high = (rounded(float(v)) for v in np.quantile(known, [0.25, 0.5, 0.75]))
            rows.append({"step": step, "role": role, "median": middle, "low": low, "high": high, "layers": len(known)})
    return sorted(rows, key=lambda row: (row["role"], row["step"]))


def _layer_lines(table: pa.Table, metric: str) -> list[dict[str, Any]]:
    """Layer and step → value, of evenly spaced steps; nothing of so many layers that no line is told from another."""
    there = table.filter(pc.is_valid(table[metric]))
    steps, layers = np.unique(there["step"].to_numpy()), len(pc.unique(there["layer"]))
    if not 0 < layers <= _MOST_LINES or len(steps) < 2:
        return []
    most = max(2, _MOST_POINTS // layers)
    if len(steps) > most:
        steps = steps[np.unique(np.linspace(0, len(steps) - 1, most).round().astype(int))]
        there = there.filter(pc.is_in(there["step"], pa.array(steps)))
    columns = (there[name].to_pylist() for name in ("step", "layer", "role", metric))
    return [{"step": step, "layer": layer, "role": role, "value": rounded(value)}
            for step, layer, role, value in zip(*columns, strict=True)]  # fmt: skip


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= 2 * _MOST_STEPS:
        return rows
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, 2 * _MOST_STEPS).round().astype(int))]
