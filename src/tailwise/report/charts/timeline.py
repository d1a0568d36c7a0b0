"""A run over time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tailwise.checkpoints.roles import ROLES
from tailwise.core.errors import UsageError
from tailwise.report.charts.data import ordered, rounded
from tailwise.report.theme import SHAPES, Palette, group_of, role_color

#: Alarms: (step, code, severity).
Marks = Sequence[tuple[int, str, str]]
WIDTH, HEIGHT = 640, 260
#: Scalars that are drawn, in this order, where a run has them.
SCALARS = ("loss", "val_loss", "eval_loss", "lr", "learning_rate", "grad_norm")
_MOST_STEPS = 800  # more points than pixels say nothing
_SEVERITY = {"error": "worse", "warning": "contrast", "note": "muted", "info": "muted"}


def series_chart(table: pa.Table, metric: str, marks: Marks, palette: Palette) -> Any:
    """The median of every role as a line, the middle half of its layers as a band, and alarms as dashed rules.

    `table` is what `History.series` gives. `UsageError` where there is nothing to draw.
    """
    import altair as alt

    rows = _quantiles(table, metric)
    if not rows:
        raise UsageError(f"the run has no {metric}")
    roles = ordered((row["role"] for row in rows), tuple(ROLES))
    colors = alt.Scale(domain=roles, range=[role_color(role, palette) for role in roles])
    shapes = alt.Scale(domain=roles, range=[SHAPES[group_of(role)] for role in roles])
    legend = alt.Legend(title=None, columns=6, symbolOpacity=1)
    base = alt.Chart(alt.NamedData(name="series"))
    x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=8, format="~s"))
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
    chart = alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)
    chart["datasets"] = {"series": rows, "alarms": _rows(marks)}
    return chart


def scalars_chart(table: pa.Table, marks: Marks, palette: Palette) -> Any:
    """Loss, learning rate and their like, one above the other. `UsageError` where the run has none of them."""
    import altair as alt

    names = [name for name in SCALARS if name in table.column_names and table[name].null_count < table.num_rows]
    if not names:
        raise UsageError("the run has no loss", fix="log it: monitor.step(loss=…)")
    steps = table["step"].to_pylist()
    parts, datasets = [], {"alarms": _rows(marks)}
    for name in names:
        values = zip(steps, table[name].to_pylist(), strict=True)
        rows = [{"step": step, "value": rounded(value)} for step, value in values if value is not None]
        datasets[name] = _thinned([row for row in rows if row["value"] is not None])
        source = alt.Chart(alt.NamedData(name=name))
        x = alt.X("step:Q", title="step", axis=alt.Axis(tickCount=8, format="~s"))
        y = alt.Y("value:Q", title=name, scale=alt.Scale(zero=False), axis=alt.Axis(tickCount=4))
        tips = [alt.Tooltip("step:Q"), alt.Tooltip("value:Q", title=name, format=".5~g")]
        line = source.mark_line(color=palette["accent"], strokeWidth=1.8).encode(x=x, y=y)
        dots = source.mark_point(color=palette["accent"], filled=True, size=14).encode(x=x, y=y, tooltip=tips)
        height = 180 if "loss" in name else 90
        parts.append(alt.layer(line, dots, *_alarms(marks, palette)).properties(width=WIDTH, height=height))
    chart = alt.vconcat(*parts, spacing=12) if len(parts) > 1 else parts[0]
    chart["datasets"] = datasets
    return chart


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


def _thinned(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    if len(rows) <= 2 * _MOST_STEPS:
        return rows
    return [rows[i] for i in np.unique(np.linspace(0, len(rows) - 1, 2 * _MOST_STEPS).round().astype(int))]
