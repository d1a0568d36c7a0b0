"""Loss against τ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import altair as alt

from tailwise.report.theme import Palette, config

if TYPE_CHECKING:
    from tailwise.compression.trying.tau_curve import TauCurve


def tau_chart(curve: TauCurve, palette: Palette) -> Any:
    """Change of the loss against uniform over τ, with its 95 % interval at each point."""
    rows: list[dict[str, float | None]] = [
        {"tau": point.tau, "change": point.change, "low": point.low, "high": point.high,
         "perplexity": point.perplexity} for point in curve.points
    ]  # fmt: skip
    source = alt.Chart(_inline(rows))
    x = alt.X("tau:Q", title="τ (0 is uniform)", scale=alt.Scale(domainMin=0), axis=alt.Axis(grid=False))
    y = alt.Y("change:Q", title="change of the loss (nats)", scale=alt.Scale(zero=True))
    tips = [alt.Tooltip(f"{name}:Q", format=".4~g") for name in ("tau", "change", "low", "high", "perplexity")]
    zero = alt.Chart(_inline([{}])).mark_rule(color=palette["rule"], strokeDash=[5, 4]).encode(y=alt.datum(0))
    line = source.mark_line(color=palette["accent"], strokeWidth=2.2).encode(x=x, y=y)
    bars = source.transform_filter("isValid(datum.low)").mark_rule(color=palette["accent"], strokeWidth=2).encode(
        x=x, y=alt.Y("low:Q"), y2="high:Q"
    )  # fmt: skip
    dots = source.mark_point(filled=True, size=70, color=palette["accent"], opacity=1).encode(x=x, y=y, tooltip=tips)
    best = curve.best
    words = [
        f"{curve.operator}, {100 * curve.sparsity:.0f} % of the planned parameters, allocator {curve.allocator}.",
        f"Below 0: better than uniform. Bars: 95 % over {curve.windows} windows. Least loss at τ = {best.tau:g}.",
    ]
    title = {"text": f"How far amounts may spread: {curve.model.rstrip('/').rsplit('/', 1)[-1]}", "subtitle": words}
    figure = alt.layer(zero, bars, line, dots).properties(width=560, height=300, title=title)
    return figure.configure(**config(palette))


def _inline(rows: list[dict[str, float | None]]) -> Any:
    made: Any = alt  # Altair leaves it untyped
    return made.Data(values=rows)
