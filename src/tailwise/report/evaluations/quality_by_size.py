"""Quality against size, a point a model, with the Pareto front."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, cast

import altair as alt

from tailwise.core.errors import UsageError
from tailwise.report.charts.chart import Chart, Guidance
from tailwise.report.charts.data import Record, rounded
from tailwise.report.evaluations.evaluation_view import EvaluationView

_HEIGHT = 340
_LABEL = 15  # pixels between two names
#: More models than this are named by their numbers alone, beside the front's.
_NAMED = 24
_LOOKS = {
    "front": ("on the front", "accent", "circle"),
    "not told apart": ("not told from the front", "role.attn_v", "triangle-up"),
    "behind": ("worse and no smaller", "noise", "cross"),
    "base": ("the base", "contrast", "diamond"),
}


def quality_by_size(view: EvaluationView) -> Any:
    """Each model by its size and its quality; a line joins those that none is better and smaller than."""
    rows = view.records
    if not rows:
        raise UsageError(
            f"no model has both {view.measure.title} and a size", fix="evaluate a folder, whose size is known"
        )
    x, y, domain = _across(view, rows), _up(view, rows), _domain(view, rows)
    _placed(rows, view, domain)
    source = alt.Chart(view.data("models", rows))
    front = [row for row in rows if row["front"]]
    line = alt.Chart(view.data("front", front)).mark_line(
        interpolate="step-after", color=view.palette["accent"], strokeWidth=1.6, opacity=0.7
    )
    used = [key for key in _LOOKS if any(row["standing"] == key for row in rows)]
    words = {key: _LOOKS[key][0] for key in used}
    legend = alt.Legend(title=None, orient="top", columns=2, symbolOpacity=1,
                        labelExpr=f"{_json(words)}[datum.value]", labelLimit=240)  # fmt: skip
    color = alt.Color("standing:N", sort=used, legend=legend, scale=alt.Scale(
        domain=used, range=[view.palette[_LOOKS[key][1]] for key in used]))  # fmt: skip
    shape = alt.Shape("standing:N", sort=used, legend=legend, scale=alt.Scale(
        domain=used, range=[_LOOKS[key][2] for key in used]))  # fmt: skip
    tips = [alt.Tooltip("name:N", title="model"), alt.Tooltip("size:Q", title=view.axis_title, format=".4~g"),
            *(alt.Tooltip(f"{key}:Q", title=title, format=".4~g") for key, title in
              (("value", view.measure.title), ("low", "from"), ("high", "to")))]  # fmt: skip
    many = len(rows) > _NAMED
    wide, y_label = alt.expr("width < 430 ? 0 : 1"), alt.Y("label:Q", **_y(view, domain))
    named = source.transform_filter("datum.front || datum.standing == 'base'") if many else source
    layers = [
        line.encode(x=x, y=y),
        source.mark_rule(strokeWidth=2.4, opacity=0.5).encode(x=x, y=alt.Y("low:Q", **_y(view, domain)), y2="high:Q",
                                                              color=color),
        source.mark_point(filled=True, size=84, opacity=1).encode(x=x, y=y, color=color, shape=shape, tooltip=tips),
        *_names(view, named, x, y_label, "said", wide),
        *_names(view, source, x, y_label, "number", alt.expr("width < 430 ? 1 : 0")),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=view.width, height=_HEIGHT)


def _names(view: EvaluationView, source: alt.Chart, x: alt.X, y: alt.Y, key: str, seen: Any) -> list[alt.Chart]:
    """Text beside marks, on paper, so that a line behind it does not cross it out."""
    look: dict[str, Any] = {"align": "left", "dx": 10, "fontSize": 11, "opacity": seen}
    paper = source.mark_text(**look, stroke=view.palette["paper"], strokeWidth=4, strokeJoin="round")
    ink = source.mark_text(**look, color=view.palette["ink"])
    return [layer.encode(x=x, y=y, text=f"{key}:N") for layer in (paper, ink)]


def _json(words: dict[str, str]) -> str:
    import json

    return json.dumps(words, ensure_ascii=False)


def _across(view: EvaluationView, rows: Sequence[Record]) -> alt.X:
    low, high = _span(rows)
    room = 0.34 if len(rows) <= _NAMED else 0.14
    scale = alt.Scale(domain=[low - 0.06 * (high - low), high + room * (high - low)], nice=False, zero=False)
    return alt.X("size:Q", title=view.axis_title, scale=scale, axis=alt.Axis(tickCount=6, format=".6~g"))


def _span(rows: Sequence[Record]) -> tuple[float, float]:
    sizes = [float(row["size"]) for row in rows]
    low, high = min(sizes), max(sizes)
    air = 0.0 if high > low else 0.1 * (high or 1.0)
    return low - air, high + air


def _domain(view: EvaluationView, rows: Sequence[Record]) -> tuple[float, float]:
    low, high = (fold(float(row[key]) for row in rows) for fold, key in ((min, "low"), (max, "high")))
    if view.measure.log:
        spread = max(math.log(high / low), 0.02) if low > 0 else 1.0
        return low * math.exp(-0.06 * spread), high * math.exp(0.06 * spread)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def _y(view: EvaluationView, domain: tuple[float, float]) -> dict[str, Any]:
    """Scale and axis, the same for every layer."""
    kind: Literal["log", "linear"] = "log" if view.measure.log else "linear"
    axis = alt.Axis(format=".6~g", tickCount=6)
    if view.measure.log:
        axis = alt.Axis(format=".6~g", values=_ticks(*domain))
    return {"scale": alt.Scale(type=kind, domain=list(domain), nice=False, zero=False), "axis": axis,
            "title": view.value_title}  # fmt: skip


def _up(view: EvaluationView, rows: Sequence[Record]) -> alt.Y:
    return alt.Y("value:Q", **_y(view, _domain(view, rows)))


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a log axis; four at least, nine at most where there are so many."""
    found: list[float] = []
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 5, 7), tuple(range(10, 100, 5))):
        found = []
        for power in range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 1):
            unit = 10.0**power / (10 if steps[0] == 10 else 1)
            found += [float(f"{step * unit:.6g}") for step in steps if low <= step * unit <= high]
        if len(found) >= 4:
            return found
    step = 10.0 ** math.floor(math.log10((high - low) / 4))
    step *= next(many for many in (1, 2, 5, 10) if (high - low) / (many * step) <= 8)
    first = math.ceil(low / step)
    return [float(f"{step * number:.6g}") for number in range(first, math.floor(high / step) + 1)]


def _placed(rows: list[Record], view: EvaluationView, domain: tuple[float, float]) -> None:
    """Give each row a `label`, where its name stands: the nearest place that is free of the others'."""
    low, high = _span(rows)
    across = max(1.4 * (high - low), 1e-12)
    up: Callable[[float], float] = math.log if view.measure.log else float
    bottom, top = (up(end) for end in domain)
    placed: list[tuple[float, float]] = []
    for row in sorted(rows, key=lambda row: row["value"]):
        at = (up(row["value"]) - bottom) / (top - bottom) * _HEIGHT
        here = float(row["size"]) / across
        near = [other for there, other in placed if abs(there - here) < 0.3]
        tried = sorted((at + step * _LABEL / 3 for step in range(-60, 61)), key=lambda place: abs(place - at))
        free = (place for place in tried if 4 < place < _HEIGHT - 4 and all(abs(place - one) >= _LABEL for one in near))
        place = next(free, at)
        placed.append((here, place))
        value = bottom + place / _HEIGHT * (top - bottom)
        row["label"] = rounded(math.exp(value) if view.measure.log else value)
        row["said"] = f"{row['number']} {row['name']}"


GUIDANCE = Guidance(
    "Each model: how large it is against how good it is. The line joins those that no other is better than and no "
    "larger; the bars are 95 % intervals, of perplexities those of the change against the base over the same windows. "
    "Numbers are those of the table.",
    "towards the small end and, of perplexity and divergence, low: a model on the line, far from its neighbours.",
    "a model off the line that is told from it: another is as small and better.",
    "“Not told from the front”: the windows do not tell it from a better one of its size or smaller, pair by pair.",
)


def figure_of(view: EvaluationView) -> Chart:
    """The chart of a view, as pages take it."""
    title = f"{view.measure.title[0].upper()}{view.measure.title[1:]} by {view.size.title}"
    draw = cast("Any", quality_by_size)
    return Chart("quality_by_size", "evaluation", "audit", title, (), GUIDANCE, draw)
