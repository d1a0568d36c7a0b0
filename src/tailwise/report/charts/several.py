"""Several models side by side."""

from __future__ import annotations

from typing import Any

import altair as alt

from tailwise.audits.trusted import OF_FIT
from tailwise.core.errors import UsageError
from tailwise.judging.compare.summary import FITTED, WELL_FIT
from tailwise.report.charts.building import ALPHA, BELOW_TWO, Axis, bands, place_axis, points, tooltip, trusted_only
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import Record, rounded
from tailwise.report.charts.view import ChartView
from tailwise.report.theme import MODEL_COLORS

_SHAPES = ("circle", "square", "triangle-up", "diamond", "cross", "triangle-down", "triangle-right", "triangle-left")


def _encodings(view: ChartView) -> dict[str, Any]:
    count = len(view.names)
    colors = [view.palette[MODEL_COLORS[i % len(MODEL_COLORS)]] for i in range(count)]
    legend = alt.Legend(title=None, columns=max(1, view.width // 160), labelLimit=210)
    return {
        "color": alt.Color("model:N", sort=view.names, legend=legend, scale=alt.Scale(domain=view.names, range=colors)),
        "shape": alt.Shape("model:N", sort=view.names, legend=legend,
                           scale=alt.Scale(domain=view.names, range=[_SHAPES[i % 8] for i in range(count)])),
    }  # fmt: skip


def _by_layer(view: ChartView, y: Axis, *, banded: bool = False) -> Any:
    """Every layer as a point, and the median of each block as a line, per model."""
    records = [record for record in view.records if record.get(y.metric) is not None]
    x = place_axis(view, records, ticks=12, title=view.depth.title)
    low = [BELOW_TWO] if banded and view.banded else []
    scale = y.scale([*(record[y.metric] for record in records), *low])
    vertical = alt.Y(f"{y.metric}:Q", title=y.title, scale=scale, axis=y.axis(scale))
    base = alt.Chart(view.layers).transform_filter(f"isValid(datum['{y.metric}'])")
    colors = _encodings(view)
    inside = base if view.depth.ordinal else base.transform_filter("isValid(datum.block)")
    middle = trusted_only(inside, y.metric).transform_aggregate(level=f"median({y.metric})", groupby=["place", "model"])
    line = middle.mark_line(strokeWidth=2.4).encode(x=x, y=alt.Y("level:Q", scale=scale), color=colors["color"])
    dots = points(base, view, size=22, x=x, y=vertical, tooltip=tooltip(view, y.metric), **colors)
    found = [*(bands(view, "y", scale) if banded else []), *dots, line]
    return alt.layer(*found).properties(width=view.width, height=320)


def _means(
    view: ChartView, metric: str, title: str, *, band: tuple[float, float] | None = None, banded: bool = False
) -> Any:
    """One dot per model: mean over its layers (those within `band`), with the middle half of them as a bar.

    Of an exponent of the fitted tail, over trusted fits alone; a model without one is named, and has no dot.
    """
    import numpy as np

    rows: list[Record] = []
    of_fit = metric in OF_FIT
    for name in view.names:
        own = [r for r in view.records if r["model"] == name]
        fits = [r for r in own if r.get(metric) is not None]
        found = [r[metric] for r in fits if not (of_fit and r["poor"])]
        if band is not None:
            found = [value for value in found if band[0] <= value <= band[1]]
        if found:
            low, high = np.quantile(found, [0.25, 0.75])
            mean = float(np.mean(found))
            # Of a mean over some layers, how many is half of what it says.
            count = f" ({len(found)} of {len(own)} layers)" if band is not None else ""
            count = f" ({len(found)} of {len(fits)} fits trusted)" if of_fit and band is None else count
            rows.append({"model": name, "mean": rounded(mean), "low": rounded(float(low)),
                         "high": rounded(float(high)), "layers": len(found), "says": _three(mean) + count})  # fmt: skip
        elif of_fit and fits:
            why = f" and within {band[0]:g} to {band[1]:g}" if band is not None else ""
            rows.append({"model": name, "says": f"no verdict: 0 of {len(fits)} fits trusted{why}"})
    if not rows:
        within = f" within {band}" if band is not None else ""
        raise UsageError(f"no layer of any model has {metric}{within}")
    shown = [row[key] for row in rows if "mean" in row for key in ("mean", "low", "high")]
    scale = Axis(metric, title).scale([*shown, *([BELOW_TWO, 4.0] if banded else [0.0])])
    every = alt.Chart(view.data("means", rows))
    source, without = every.transform_filter("isValid(datum.mean)"), every.transform_filter("!isValid(datum.mean)")
    y = alt.Y("model:N", sort=view.names, title=None, axis=alt.Axis(labelLimit=220, ticks=False, domain=False))
    color = alt.Color("model:N", sort=view.names, legend=None, scale=_encodings(view)["color"]["scale"])
    tips = [
        alt.Tooltip("model:N"),
        *(alt.Tooltip(f"{key}:Q", format=".4~g") for key in ("mean", "low", "high", "layers")),
    ]
    layers = [
        *(bands(view, "x", scale) if banded else []),
        source.mark_rule(strokeWidth=6, opacity=0.35, strokeCap="round").encode(
            x="low:Q", x2="high:Q", y=y, color=color),
        source.mark_point(filled=True, size=120, opacity=1).encode(
            x=alt.X("mean:Q", scale=scale, title=title, axis=alt.Axis(tickCount=8)), y=y, color=color, tooltip=tips),
        source.mark_text(dy=-13, fontSize=11, color=view.palette["ink"]).encode(x="mean:Q", y=y, text="says:N"),
        *([without.mark_text(align="left", fontSize=11, color=view.palette["muted"]).encode(
            x=alt.value(6), y=y, text="says:N")] if len(rows) > len(shown) // 3 else []),
    ]  # fmt: skip
    return alt.layer(*layers).properties(width=view.width - 120, height=max(60, 46 * len(rows)))


@chart(
    "models_alpha_by_layer",
    title="α along depth, by model",
    scope="several",
    needs=("alpha", "ks_distance"),
    guidance=Guidance(
        "α of every layer; the line is the median of a block, over the trusted fits of all its roles. Small block "
        "numbers: near the data.",
        "a line that stays between 2 and 4 from end to end.",
        "a model whose line leaves the others, above 6 or below 2.",
        "Blocks of models with other roles or shapes are not the same thing: compare like with like.",
    ),
)
def models_alpha_by_layer(view: ChartView) -> Any:
    """α along depth for each model."""
    return _by_layer(view, Axis("alpha", ALPHA, log=True), banded=True)


@chart(
    "models_scale_by_layer",
    title="Scale along depth, by model",
    scope="several",
    needs=("log_spectral_norm",),
    guidance=Guidance(
        "log10 λmax of every layer; the line is the median of a block. Small block numbers are near the data.",
        "smooth lines.",
        "jumps, or a model whose scale runs away along depth.",
    ),
)
def models_scale_by_layer(view: ChartView) -> Any:
    """Scale along depth for each model."""
    return _by_layer(view, Axis("log_spectral_norm", "log10 λmax"))


@chart(
    "models_alpha",
    title="Mean α by model",
    scope="several",
    needs=("alpha",),
    guidance=Guidance(
        "Mean over the trusted fits of all roles; the bar holds the middle half of them, the words say how many.",
        "near 2 to 4, with a short bar; of models of one family, the lower is usually the better trained.",
        "above 6 or below 2.",
        "A mean over roles hides differences: a model with other roles has another mean. One outside its bar is of a "
        "few far values. Of the checkpoints of one run read alpha_hill by role over the steps: the fits that are "
        "trusted are others at each.",
    ),
)
def models_alpha(view: ChartView) -> Any:
    """Mean α per model."""
    return _means(view, "alpha", "α", banded=True)


_BAND = (
    "Mean of α over the trusted fits with α in %s alone; the bar holds the middle half of them, the words say how many."
)
_FEW = "What it leaves out decides as much as what it takes in: look at the number of layers."


@chart(
    "models_alpha_2_4",
    title="Mean α within 2–4, by model",
    scope="several",
    needs=("alpha",),
    guidance=Guidance(_BAND % "2–4", "many layers, near 2 of models of one family.", "few layers.", _FEW),
)
def models_alpha_2_4(view: ChartView) -> Any:
    """Mean α per model over the layers within 2–4."""
    return _means(view, "alpha", "α", band=WELL_FIT, banded=True)


@chart(
    "models_alpha_2_6",
    title="Mean α within 2–6, by model",
    scope="several",
    needs=("alpha",),
    guidance=Guidance(_BAND % "2–6", "many layers, near 2 to 4.", "few layers, or a mean near 6.", _FEW),
)
def models_alpha_2_6(view: ChartView) -> Any:
    """Mean α per model over the layers within 2–6."""
    return _means(view, "alpha", "α", band=FITTED, banded=True)


@chart(
    "models_rank",
    title="Effective rank by model",
    scope="several",
    needs=("effective_rank",),
    guidance=Guidance(
        "Mean effective rank; the bar holds the middle half of the layers.",
        "for models of one architecture: a rank well below that of the untrained model, and far above 1.",
        "a model whose rank collapses against its peers.",
        "It grows with the size of the matrices: compare models of one shape.",
    ),
)
def models_rank(view: ChartView) -> Any:
    """Mean effective rank per model."""
    return _means(view, "effective_rank", "effective rank")


@chart(
    "models_rd",
    title="Distance from random, by model",
    scope="several",
    needs=("one_minus_rd",),
    guidance=Guidance(
        "Mean of 1 − RD; 1 is a spectrum like that of W's own entries in random order. The bar holds the middle half.",
        "away from 1, as its peers.",
        "a model near 1, as if untrained, or far from all the others.",
        "Sources disagree: one calls a high 1 − RD good, another a high RD. Rank nothing by it alone.",
    ),
)
def models_rd(view: ChartView) -> Any:
    """Mean 1 − RD per model."""
    return _means(view, "one_minus_rd", "1 − RD")


@chart(
    "models_traps",
    title="Correlation traps by model",
    scope="several",
    needs=("num_traps",),
    guidance=Guidance("Mean number of traps per layer; the bar holds the middle half of the layers.",
                      "near 0.", "more traps than its peers: over-fitting, or outlier weights."),
)  # fmt: skip
def models_traps(view: ChartView) -> Any:
    """Mean traps per model."""
    return _means(view, "num_traps", "traps per layer")


def _three(number: float) -> str:
    """Three digits, zeros at the end kept from one to ten: a mean of 2.00 is no count."""
    return f"{number:.2f}" if 1 <= abs(number) < 10 else f"{number:.3g}"
