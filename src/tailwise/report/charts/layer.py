"""One layer: its spectrum, the fit, noise, and how the exponent depends on where the tail begins.

The figures hold no numbers of their own: `layer_data` gives all of them, so a report keeps one figure for all layers.
"""

from __future__ import annotations

import math
from typing import Any

import altair as alt
import numpy as np

from tailwise.audits.rows import Layer
from tailwise.report.charts.chart import Guidance, chart
from tailwise.report.charts.data import Record, rounded
from tailwise.report.charts.view import ChartView
from tailwise.spectrum.ks_scan import exponents, ks_at
from tailwise.spectrum.marchenko_pastur import cdf
from tailwise.spectrum.power_law import above_threshold

_LOG_BINS, _LINEAR_BINS, _SCAN = 44, 44, 56
_OWN, _MIXED, _FIT, _LAW = "eigenvalues of W", "entries permuted", "power-law fit", "Marchenko-Pastur"

Data = dict[str, list[Record]]


def layer_data(layer: Layer) -> Data:
    """Every dataset of a layer's charts: `esd_log`, `esd`, `fit`, `scan` and `marks`."""
    fitted = (layer.windows or layer.spectrum).eigenvalues
    values = above_threshold(fitted)
    marks = _marks(layer)
    if len(values) < 2 or values[0] == values[-1]:
        return {"esd_log": [], "esd": [], "fit": [], "scan": [], "marks": [marks]}
    return {
        "esd_log": _log_bins(layer, values),
        "esd": _linear_bins(layer, marks),
        "fit": _fit(marks, math.log(values[-1] / values[0]) / _LOG_BINS),
        "scan": _scan(values),
        "marks": [marks],
    }


def _marks(layer: Layer) -> Record:
    metrics = layer.row.metrics
    names = ("alpha", "alpha_sigma", "ks_distance", "lambda_min", "lambda_max", "lambda_plus", "num_pl_spikes")
    return {name: rounded(metrics.get(name)) for name in names}


def _log_bins(layer: Layer, values: Any) -> list[Record]:
    """Counts per bin of equal width in ln λ, of W and (mean) of permuted W."""
    edges = np.geomspace(values[0], values[-1] * (1 + 1e-9), _LOG_BINS + 1)
    own = np.histogram(values, edges)[0]
    permuted = [np.histogram(one.eigenvalues, edges)[0] for one in layer.permuted]
    mixed = np.mean(permuted, axis=0) if permuted else np.zeros(_LOG_BINS)
    return _bars(edges, own, mixed)


def _linear_bins(layer: Layer, marks: Record) -> list[Record]:
    """Counts per bin of equal width up to the bulk's edge and half as far again; the tail is the other picture's."""
    values = layer.spectrum.eigenvalues
    edge = marks["lambda_plus"] or 0.0
    stop = min(float(values[-1]), max(1.8 * edge, float(np.quantile(values, 0.9))))
    edges = np.linspace(0.0, stop * (1 + 1e-9), _LINEAR_BINS + 1)
    sigma = layer.row.metrics.get("sigma_mp")
    spectrum = layer.spectrum
    noise = np.zeros(_LINEAR_BINS)
    if sigma:
        # The law describes the bulk alone: spikes are not its.
        noise = (len(values) - (layer.row.metrics.get("num_spikes") or 0)) * np.diff(
            cdf(edges, sigma, spectrum.n, spectrum.m)
        )
    return _bars(edges, np.histogram(values, edges)[0], noise)


def _bars(edges: Any, own: Any, noise: Any) -> list[Record]:
    return [
        {"low": rounded(edges[i]), "high": rounded(edges[i + 1]), "count": int(own[i]), "noise": rounded(noise[i])}
        for i in range(len(own))
    ]


def _fit(marks: Record, width: float) -> list[Record]:
    """The fitted power law as counts per bin of `_log_bins`: k·(α−1)·(λ/λ_min)^{1−α} per unit of ln λ."""
    alpha, low, high, k = (marks[name] for name in ("alpha", "lambda_min", "lambda_max", "num_pl_spikes"))
    if None in (alpha, low, high, k) or not high > low > 0:
        return []
    at = np.geomspace(low, high, 24)
    counts = k * (alpha - 1) * (at / low) ** (1 - alpha) * width
    return [{"at": rounded(x), "count": rounded(y)} for x, y in zip(at, counts, strict=True)]


def _scan(values: Any) -> list[Record]:
    """α, its standard error and D for starts of the tail spread evenly in ln k."""
    logs = np.log(values)
    alphas, n = exponents(logs), len(values)
    sizes = np.unique(np.geomspace(min(5, n), n, _SCAN).astype(int))
    rows = []
    for k in sizes[sizes >= 2]:
        alpha = float(alphas[n - k])
        if not math.isfinite(alpha) or alpha > 60:
            continue
        error = (alpha - 1) / math.sqrt(k)
        distance, _ = ks_at(logs, n - k, alpha)
        rows.append({"k": int(k), "start": rounded(values[n - k]), "alpha": rounded(alpha),
                     "below": rounded(max(alpha - error, 1.0)), "above": rounded(alpha + error),
                     "D": rounded(distance)})  # fmt: skip
    return rows


def _source(view: ChartView, name: str) -> alt.Chart:
    return alt.Chart(view.data(name, layer_data(view.layer)[name]))


def _at(view: ChartView, field: str, color: str, dash: list[int]) -> alt.Chart:
    """A line at a number of the layer."""
    mark = _source(view, "marks").transform_filter(f"isValid(datum.{field})")
    line: alt.Chart = mark.mark_rule(color=view.palette[color], strokeDash=dash, strokeWidth=1.5).encode(
        x=f"{field}:Q", tooltip=[alt.Tooltip(f"{field}:Q", format=".4~g")]
    )
    return line


def _legend(view: ChartView, *entries: tuple[str, str]) -> alt.Color:
    """Colour by the label that `_named` gives a mark."""
    scale = alt.Scale(domain=[label for label, _ in entries], range=[view.palette[color] for _, color in entries])
    return alt.Color("what:N", scale=scale, legend=alt.Legend(title=None, orient="top", symbolOpacity=1))


def _named(source: alt.Chart, label: str) -> alt.Chart:
    return source.transform_calculate(what=f"'{label}'")


@chart(
    "layer_esd",
    title="Spectrum and fit, log-log",
    scope="layer",
    guidance=Guidance(
        "Eigenvalues per bin (both axes logarithmic); the line is the power law fitted from λ_min (dashed) on.",
        "the line lies on the points over a decade or more.",
        "points that bend away from the line, or a tail of a few points: α is no verdict.",
        "Grey: W's entries in random order, where --randomize measured it; dotted: the edge of a noise bulk.",
    ),
)
def layer_esd(view: ChartView) -> Any:
    """Log-log spectrum with fit, λ_min, MP edge and permuted spectrum."""
    color = _legend(view, (_OWN, "accent"), (_MIXED, "noise"), (_FIT, "contrast"))
    x = alt.X("low:Q", scale=alt.Scale(type="log", nice=False), title="eigenvalue λ (log scale)",
              axis=alt.Axis(grid=False, tickCount=5, format="~g"))  # fmt: skip
    y = alt.Y("count:Q", scale=alt.Scale(type="log", domainMin=0.6, nice=False), title="per bin (log scale)",
              axis=alt.Axis(values=[1, 10, 100, 1000, 10000], format="~g"))  # fmt: skip
    source = _source(view, "esd_log").transform_calculate(middle="sqrt(datum.low * datum.high)", base="0.6")
    middle = alt.X("middle:Q", scale=x["scale"], axis=x["axis"], title=x["title"])
    noise = _named(source, _MIXED).transform_filter("datum.noise > 0.6").mark_bar(opacity=0.4).encode(
        x=x, x2="high:Q", y=alt.Y("base:Q", scale=y["scale"]), y2="noise:Q", color=color)  # fmt: skip
    seen = _named(source, _OWN).transform_filter("datum.count > 0")
    own = seen.mark_point(filled=True, size=34, opacity=0.95).encode(
        x=middle, y=y, color=color,
        tooltip=[alt.Tooltip("middle:Q", title="λ", format=".4~g"), alt.Tooltip("count:Q")])  # fmt: skip
    fit = _named(_source(view, "fit"), _FIT).transform_filter("datum.count > 0.6").mark_line(strokeWidth=2.2).encode(
        x="at:Q", y="count:Q", color=color)  # fmt: skip
    marks = [_at(view, "lambda_min", "contrast", [5, 4]), _at(view, "lambda_plus", "muted", [2, 3])]
    return alt.layer(noise, *marks, fit, own).properties(width=view.width, height=220)


@chart(
    "layer_bulk",
    title="Spectrum and noise bulk, linear",
    scope="layer",
    guidance=Guidance(
        "Eigenvalues per bin, linear; the grey line is the Marchenko-Pastur law of noise fitted to the bulk.",
        "bars that leave the grey line: structure beyond noise.",
        "bars on the grey line up to its edge (dotted): the layer looks like noise.",
        "The far tail is cut off here; the log-log picture shows it.",
    ),
)
def layer_bulk(view: ChartView) -> Any:
    """Linear spectrum with the Marchenko-Pastur law and its edge."""
    color = _legend(view, (_OWN, "accent"), (_LAW, "muted"))
    x = alt.X("low:Q", scale=alt.Scale(nice=False, zero=True), title="eigenvalue λ",
              axis=alt.Axis(grid=False, tickCount=6, format="~g"))  # fmt: skip
    y = alt.Y("count:Q", title="eigenvalues per bin", axis=alt.Axis(tickCount=5))
    source = _source(view, "esd").transform_calculate(middle="(datum.low + datum.high) / 2")
    bars = _named(source, _OWN).mark_bar(opacity=0.8).encode(
        x=x, x2="high:Q", y=y, y2=alt.datum(0), color=color)  # fmt: skip
    line = _named(source, _LAW).transform_filter("datum.noise > 0").mark_line(strokeWidth=2).encode(
        x="middle:Q", y="noise:Q", color=color)  # fmt: skip
    return alt.layer(bars, line, _at(view, "lambda_plus", "muted", [2, 3])).properties(width=view.width, height=220)


def _stability(view: ChartView, field: str, mark: str, title: str) -> Any:
    """α ± its standard error and D against one way of saying where the tail begins."""
    scan = _source(view, "scan")
    x = alt.X(f"{field}:Q", scale=alt.Scale(type="log", nice=False), title=title,
              axis=alt.Axis(grid=False, tickCount=5, format="~g"))  # fmt: skip
    y = alt.Y("below:Q", title="α ± standard error", scale=alt.Scale(zero=False, nice=False, padding=6),
              axis=alt.Axis(tickCount=6))  # fmt: skip
    tips = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("k", "start", "alpha", "D")]
    spread = scan.mark_area(opacity=0.2, color=view.palette["accent"]).encode(x=x, y=y, y2="above:Q")
    line = scan.mark_line(color=view.palette["accent"], strokeWidth=2).encode(x=x, y="alpha:Q")
    dots = scan.mark_point(color=view.palette["accent"], filled=True, size=16, opacity=1).encode(
        x=x, y="alpha:Q", tooltip=tips)  # fmt: skip
    return alt.layer(spread, line, dots, _at(view, mark, "contrast", [5, 4])).properties(width=view.width, height=190)


@chart(
    "layer_xmin",
    title="α against the start of the tail",
    scope="layer",
    guidance=Guidance(
        "The exponent for every start of the tail; dashed: the start that the fit chose.",
        "a plateau around the dashed line: the exponent does not depend on the choice.",
        "a slope through the dashed line: another choice would give another exponent.",
    ),
)
def layer_xmin(view: ChartView) -> Any:
    """α against λ_min."""
    return _stability(view, "start", "lambda_min", "λ_min (log scale)")


@chart(
    "layer_hill",
    title="Hill plot: α against the size of the tail",
    scope="layer",
    guidance=Guidance(
        "The exponent of the k largest eigenvalues; dashed: the k of the fit.",
        "a plateau over a wide range of k: a power law.",
        "a steady climb or fall: no power law at any cut.",
    ),
)
def layer_hill(view: ChartView) -> Any:
    """α against k, the Hill plot."""
    return _stability(view, "k", "num_pl_spikes", "k, eigenvalues in the tail (log scale)")


@chart(
    "layer",
    title="One layer",
    scope="layer",
    guidance=Guidance(
        "The spectrum and its fit (log-log), its noise bulk (linear), and α by where the tail begins.",
        "a straight tail on the line, and a plateau of α around the dashed choice.",
        "a tail that bends, or an α that slides with the choice.",
    ),
)
def layer_page(view: ChartView) -> Any:
    """All four pictures of a layer."""
    whole, view.width = view.width, view.width // 2 + 40
    try:
        charts = [draw(view) for draw in (layer_esd, layer_bulk, layer_xmin, layer_hill)]
    finally:
        view.width = whole
    rows = [alt.hconcat(*pair, spacing=30).resolve_scale(color="independent") for pair in (charts[:2], charts[2:])]
    return alt.vconcat(*rows, spacing=24).resolve_scale(color="independent")
