"""Models of very many blocks: quantile bands along depth, with what stands out of them by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import altair as alt
import numpy as np

from tailwise.report.charts.building import Axis, role_encodings, tooltip
from tailwise.report.charts.data import OUTSIDE, Record, rounded
from tailwise.report.charts.view import ChartView

#: From more blocks on, single layers are no picture.
MANY_BLOCKS = 64
#: What the bands are, in the words under them.
SAYS = "bands: middle 80 % and half; points: outliers"
_BINS = 32  # stretches of depth at most
_REACH = 2  # stretches to either side that say what is usual
_OUT = 4.0  # robust standard deviations from there
_NAMED = 3  # of a panel: the farthest


def is_deep(view: ChartView) -> bool:
    """Whether the model has too many blocks for a point per layer."""
    return not view.depth.ordinal and view.depth.high - view.depth.low + 1 > MANY_BLOCKS


def stretches(records: Sequence[Record], metric: str, *, log: bool, noise: str | None = None) -> list[Record]:
    """Panel and stretch of depth → quantiles; and the layers that stand out of what is usual around them.

    Bands have `kind` "band"; layers outside the blocks "layer", outliers "outlier", those with a label `said`.
    """
    panels: dict[str, list[Record]] = {}
    for record in records:
        if record.get(metric) is not None:
            panels.setdefault(record["panel"], []).append(record)
    rows: list[Record] = []
    for panel, own in panels.items():
        if panel == OUTSIDE:
            rows += [{**record, "kind": "layer"} for record in own]
            continue
        bins = _bins(own)
        out = _outliers(bins, metric, log=log)
        apart = {record["name"] for record in out}
        usual = [[record for record in part if record["name"] not in apart] for part in bins]
        rows += [_band(panel, part, metric, noise) for part in usual if part]
        rows += out
    return rows


def _bins(own: Sequence[Record]) -> list[list[Record]]:
    places = [record["block"] for record in own]
    low, high = min(places), max(places)
    width = max(2, -(-(high - low + 1) // _BINS))
    found: dict[int, list[Record]] = {}
    for record in own:
        found.setdefault((record["block"] - low) // width, []).append(record)
    return [found[index] for index in sorted(found)]


def _band(panel: str, part: Sequence[Record], metric: str, noise: str | None) -> Record:
    values = [record[metric] for record in part]
    low, quarter, middle, more, high = (rounded(float(q)) for q in np.quantile(values, [0.1, 0.25, 0.5, 0.75, 0.9]))
    places = [record["place"] for record in part]
    of_noise = [record[noise] for record in part if record.get(noise) is not None] if noise else []
    return {
        "kind": "band", "panel": panel, "role": part[0]["role"], "place": (min(places) + max(places)) / 2,
        "blocks": f"{min(places)}–{max(places)}", "layers": len(part), "p10": low, "p25": quarter, "p50": middle,
        "p75": more, "p90": high, "noise": rounded(float(np.mean(of_noise))) if of_noise else None,
    }  # fmt: skip


def _outliers(bins: Sequence[Sequence[Record]], metric: str, *, log: bool) -> list[Record]:
    def at(record: Mapping[str, Any]) -> float:
        value = float(record[metric])
        return float(np.log(max(value, 1e-300))) if log else value

    every = [at(record) for part in bins for record in part]
    floor = 0.02 * (max(every) - min(every))
    found: list[tuple[float, Record]] = []
    for index, part in enumerate(bins):
        around = [at(record) for near in bins[max(index - _REACH, 0) : index + _REACH + 1] for record in near]
        middle = float(np.median(around))
        scatter = max(1.4826 * float(np.median(np.abs(np.array(around) - middle))), floor, 1e-12)
        found += [(abs(at(record) - middle) / scatter, record) for record in part]
    out = sorted((item for item in found if item[0] >= _OUT), key=lambda item: -item[0])
    crowded = sum(len(part) for part in bins) > len({record["place"] for part in bins for record in part})
    return [
        {**record, "kind": "outlier", "said": (_tail(record) if crowded else f"block {record['block']}")
         if index < _NAMED else ""}
        for index, (_, record) in enumerate(out)
    ]  # fmt: skip


def _tail(record: Mapping[str, Any]) -> str:
    """The last parts of a name: what tells it from others of its block."""
    return f"{record['block']}: {'.'.join(str(record['name']).split('.')[-2:])[-18:]}"


def deep_layers(
    view: ChartView, y: Axis, x: alt.X, scale: alt.Scale, *, noise: bool, outside: Sequence[str]
) -> list[alt.Chart]:
    """Bands, the median as a line, and points for outliers and for what stands outside the blocks."""
    base, colors = alt.Chart(), role_encodings(view, legend=bool(outside), only=outside)
    bands = base.transform_filter("datum.kind == 'band'")
    points = base.transform_filter("datum.kind != 'band'")
    tips = [alt.Tooltip("role:N"), alt.Tooltip("blocks:N"), alt.Tooltip("layers:Q"),
            *(alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("p10", "p25", "p50", "p75", "p90"))]  # fmt: skip
    ink = colors["color"]

    def up(name: str) -> alt.Y:
        return alt.Y(f"{name}:Q", title=y.title, scale=scale, axis=y.axis(scale, wide=False))

    found = [
        bands.mark_area(opacity=0.16).encode(x=x, y=up("p10"), y2="p90:Q", color=ink),
        bands.mark_area(opacity=0.3).encode(x=x, y=up("p25"), y2="p75:Q", color=ink),
        bands.mark_line(strokeWidth=1.8).encode(x=x, y=up("p50"), color=ink),
        bands.mark_point(size=30, opacity=0).encode(x=x, y=up("p50"), tooltip=tips),
    ]
    if noise:
        line = bands.transform_filter("isValid(datum.noise)")
        mark = line.mark_line(color=view.palette["noise"], strokeDash=[4, 3], strokeWidth=1.4)
        found.append(mark.encode(x=x, y=up("noise")))
    where = {"x": x, "y": up(y.metric), "tooltip": tooltip(view, y.metric)}
    found.append(points.mark_point(filled=True, size=30, opacity=0.95).encode(**where, **colors))
    middle = (view.depth.low + view.depth.high) / 2
    sides: tuple[tuple[str, Literal["left", "right"], int], ...] = (("<=", "left", 7), (">", "right", -7))
    for side, align, dx in sides:
        said = points.transform_filter(f"datum.said && datum.place {side} {middle}")
        text = said.mark_text(align=align, dx=dx, fontSize=9.5, color=view.palette["ink"], limit=110)
        found.append(text.encode(x=x, y=up(y.metric), text="said:N"))
    return found
