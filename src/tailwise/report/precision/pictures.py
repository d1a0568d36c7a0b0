"""Layers side by side, a point a format, and one layer as bars: the specs of the documented pictures."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Sequence
from typing import Any

import altair as alt

from tailwise.audits.precision.study import LayerStudy
from tailwise.report.charts.building import ALPHA_TICKS, Axis
from tailwise.report.charts.data import Record, nice_step, rounded
from tailwise.report.columns import printable
from tailwise.report.precision.precision_summary import trouble
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.theme import MODEL_COLORS, config

Spec = dict[str, Any]
_ALPHA = Axis("alpha", "α Hill (log scale)", log=True)
_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")
_ROW_OF_ONE = 9  # pixels for a format in a row
_LONG = 14  # layers from which the axis stands where the reader begins
_TALLEST = 15_000  # pixels of a picture
_NAME = 44  # characters of a layer's name beside its row


def ladder(view: StudyView, layers: Sequence[LayerStudy], title: str) -> Spec:
    """A row a layer: α ± σ in each format, and a word where there is no α."""
    formats = list(view.study.formats)
    height = _row(len(formats), len(layers))
    rows, words = _steps(layers, formats)
    stripes = [{"top": index - 0.5, "bottom": index + 0.5} for index in range(0, len(layers), 2)]
    x, down, look = _across(rows, top=len(layers) > _LONG), _down(layers), _looks(view, formats)
    y = alt.Y("row:Q", title=None, **down)
    source = alt.Chart(view.data("steps", rows))
    small = min(10.0, height / max(len(formats), 1) + 2)
    layer = alt.layer(
        alt.Chart(view.data("stripes", stripes)).mark_rect(color=view.palette["grid"], opacity=0.45).encode(
            y=alt.Y("top:Q", title=None, **down), y2="bottom:Q"),
        source.mark_rule(strokeWidth=1.4, opacity=0.6).encode(x=alt.X("low:Q", **x), x2="high:Q", y=y,
                                                              color=look["color"]),
        source.mark_point(filled=True, size=34, opacity=1).encode(x=alt.X("alpha:Q", **x), y=y, **look),
        alt.Chart(view.data("words", words)).mark_text(
            align="left", dx=4, fontSize=small, color=view.palette["worse"],
        ).encode(x=alt.datum(x["scale"].to_dict()["domain"][0], scale=x["scale"]), y=y, text="says:N"),
    )  # fmt: skip
    lines = ["± standard error (α − 1)/√k. Tails of the largest eigenvalues, by Hill's estimator."]
    headed = {"text": view.title(title), "subtitle": lines}
    figure = layer.properties(width=520, height=max(60, height * len(layers)), title=headed)
    return _finished(figure.to_dict(), view, {"steps": rows, "stripes": stripes, "words": words})


def _down(layers: Sequence[LayerStudy]) -> dict[str, Any]:
    labels = json.dumps([middle_cut(printable(layer.name), _NAME) for layer in layers], ensure_ascii=False)
    axis = alt.Axis(values=list(range(len(layers))), labelExpr=f"{labels}[datum.value]", labelLimit=340,
                    labelOverlap=False, grid=False, ticks=False, domain=False)  # fmt: skip
    scale = alt.Scale(domain=[-0.5, len(layers) - 0.5], nice=False, zero=False, reverse=True)
    return {"scale": scale, "axis": axis}


def _across(rows: Sequence[Record], *, top: bool) -> dict[str, Any]:
    scale = _ALPHA.scale([row[key] for row in rows for key in ("low", "high")] or [2.0, 6.0])
    ticks = _ticks(*scale.to_dict()["domain"])
    axis = alt.Axis(values=ticks, format="~g", labelOverlap="greedy", orient="top" if top else "bottom")
    return {"title": _ALPHA.title, "scale": scale, "axis": axis}


def _ticks(low: float, high: float) -> list[float]:
    """The ticks of alpha; where fewer than four are inside, round numbers evenly apart."""
    known = [float(tick) for tick in ALPHA_TICKS if low <= tick <= high]
    if len(known) >= 4:
        return known
    step = nice_step(high - low, 5)
    first = math.ceil(low / step)
    return [round(step * number, 6) for number in range(first, math.floor(high / step) + 1)]


def _row(formats: int, layers: int) -> int:
    """Height of a row; a picture of very many layers stays one that can be opened."""
    return max(14, min(max(20, _ROW_OF_ONE * formats + 5), _TALLEST // max(layers, 1)))


def _steps(layers: Sequence[LayerStudy], formats: Sequence[str]) -> tuple[list[Record], list[Record]]:
    rows: list[Record] = []
    words: list[Record] = []
    for index, layer in enumerate(layers):
        if not layer.measured:
            words.append({"row": index, "says": trouble(None, layer)})
            continue
        for place, name in enumerate(formats):
            at = round(index + 0.84 * ((place + 0.5) / len(formats) - 0.5), 4)
            reading = layer.readings.get(name)
            word = trouble(reading, layer)
            if word or reading is None or reading.alpha is None:
                words.append({"row": at, "says": f"{name}: {word}"})
                continue
            sigma = reading.alpha_sigma or 0.0
            rows.append({"row": at, "format": name, "alpha": rounded(reading.alpha),
                         "low": rounded(reading.alpha - sigma), "high": rounded(reading.alpha + sigma)})  # fmt: skip
    return rows, words


def _looks(view: StudyView, formats: Sequence[str]) -> dict[str, Any]:
    """Colour and shape by format, with one legend."""
    many = len(formats) > len(MODEL_COLORS)
    colors = [view.palette[MODEL_COLORS[index % len(MODEL_COLORS)]] for index in range(len(formats))]
    shapes = [_SHAPES[(index // len(MODEL_COLORS) if many else index) % len(_SHAPES)] for index in range(len(formats))]
    legend = alt.Legend(title=None, orient="top", columns=5, symbolOpacity=1)
    return {
        "color": alt.Color("format:N", sort=formats, legend=legend, scale=alt.Scale(domain=formats, range=colors)),
        "shape": alt.Shape("format:N", sort=formats, legend=legend, scale=alt.Scale(domain=formats, range=shapes)),
    }


class Bars:
    """One layer as bars, a bar a format; the spec is built once and filled for each layer."""

    def __init__(self, view: StudyView) -> None:
        self._formats = list(view.study.formats)
        self._width = max(420, 58 * len(self._formats))
        self._spec = _finished(self._figure(view).to_dict(), view, {})

    def _figure(self, view: StudyView) -> Any:
        turned = max(map(len, self._formats)) * 6.2 > self._width / len(self._formats)
        axis = alt.Axis(labelAngle=-35 if turned else 0, grid=False, ticks=False, labelOverlap=False, labelLimit=170)
        x = alt.X("format:N", sort=self._formats, title=None, axis=axis, scale=alt.Scale(domain=self._formats))
        up: dict[str, Any] = {
            "title": "α Hill",
            "scale": alt.Scale(zero=True, nice=True, domainMin=0),
            "axis": alt.Axis(tickCount=6),
        }
        bars, words = alt.Chart(alt.NamedData(name="bars")), alt.Chart(alt.NamedData(name="words"))
        ink, accent = view.palette["ink"], view.palette["accent"]
        return alt.layer(
            bars.mark_bar(color=accent, opacity=0.75, width={"band": 0.62}).encode(x=x, y=alt.Y("alpha:Q", **up)),
            bars.mark_rule(color=ink, strokeWidth=1.4).encode(x=x, y=alt.Y("low:Q", **up), y2="high:Q"),
            bars.mark_tick(color=ink, width=12, thickness=1.4).encode(x=x, y=alt.Y("low:Q", **up)),
            bars.mark_tick(color=ink, width=12, thickness=1.4).encode(x=x, y=alt.Y("high:Q", **up)),
            bars.mark_text(dy=-8, baseline="bottom", color=ink, fontSize=11).encode(
                x=x, y=alt.Y("high:Q", **up), text=alt.Text("alpha:Q", format=".2f")),
            alt.Chart(alt.NamedData(name="loaded")).mark_rule(color=view.palette["contrast"], strokeDash=[5, 4]).encode(
                y=alt.Y("alpha:Q", **up)),
            words.mark_text(angle=270, align="left", dx=6, color=view.palette["worse"], fontSize=11).encode(
                x=x, y=alt.Y("zero:Q", **up), text="says:N"),
        ).properties(width=self._width, height=260)  # fmt: skip

    def of(self, layer: LayerStudy) -> Spec:
        """The spec for one layer."""
        bars: list[Record] = []
        words: list[Record] = []
        for name in self._formats:
            reading = layer.readings.get(name)
            word = trouble(reading, layer)
            if word or reading is None or reading.alpha is None:
                words.append({"format": name, "zero": 0, "says": word})
                continue
            sigma = reading.alpha_sigma or 0.0
            bars.append({"format": name, "alpha": rounded(reading.alpha), "low": rounded(reading.alpha - sigma),
                         "high": rounded(reading.alpha + sigma)})  # fmt: skip
        if not bars:
            words.append({"format": self._formats[0], "zero": 1, "says": ""})  # gives the axis a length
        loaded = [] if layer.alpha is None else [{"alpha": rounded(layer.alpha)}]
        spec = copy.copy(self._spec)
        spec["datasets"] = {"bars": bars, "words": words, "loaded": loaded}
        spec["title"] = {"text": middle_cut(printable(layer.name), self._width // 8), "fontSize": 14,
                         "subtitle": self._subtitle(layer)}  # fmt: skip
        return spec

    def _subtitle(self, layer: LayerStudy) -> list[str]:
        about = f"{layer.category}, {layer.out_features}×{layer.in_features}, stored as {layer.dtype}"
        if not layer.measured:
            return [about, middle_cut(printable(f"{layer.status}: {layer.reason}"), self._width // 6)]
        return [about, "Bars: ± standard error. Dashed: the layer as loaded."]


def middle_cut(text: str, most: int) -> str:
    """`text`, with its middle left out where it is long: names of layers differ at their end."""
    if len(text) <= most:
        return text
    head = (most - 1) // 3
    return f"{text[:head]}…{text[len(text) - (most - 1 - head) :]}"


def _finished(spec: Spec, view: StudyView, datasets: dict[str, list[Record]]) -> Spec:
    return {**spec, "datasets": datasets, "config": config(view.palette)}
