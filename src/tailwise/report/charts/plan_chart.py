"""A plan along depth."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

from tailwise.compression.plans.bits import bits_of, depth_words, mean_bits
from tailwise.compression.plans.plan import Plan
from tailwise.compression.plans.rank_correlation import block_means, depth_correlation
from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get
from tailwise.report.theme import SHAPES, Palette, config, group_of, role_color

WIDTH, HEIGHT = 640, 320


@dataclass(frozen=True)
class _DrawnPlan:
    """What is drawn of a plan."""

    unit: str  # title of the axis
    amounts: dict[str, float]  # tensor → amount
    means: dict[int, float]  # block → mean amount
    asked: float
    depth: str


def _drawn(plan: Plan) -> _DrawnPlan:
    if plan.quantizes:
        blocks = sorted({d.block for d in plan if d.block is not None})
        means = {block: mean_bits(d for d in plan if d.block == block) for block in blocks}
        asked = plan.budget.get("requested", mean_bits(plan))
        return _DrawnPlan("bits per weight", {d.tensor: bits_of(d) for d in plan}, means, asked, depth_words(plan))
    amounts = {d.tensor: round(d.sparsity, 6) for d in plan if d.sparsity is not None}
    asked = plan.budget.get("requested", plan.sparsity)
    return _DrawnPlan("sparsity", amounts, dict(block_means(plan)), asked, depth_correlation(plan).words)


def plan_chart(plan: Plan, palette: Palette) -> Any:
    """Amount of every tensor along depth, coloured by role, with the blocks' means and the budget. An Altair chart.

    Sparsity, or bits per weight; of a plan that does both, the sparsity. Needs `tailwise[report]`.
    """
    try:
        import altair as alt
    except ImportError as error:
        raise UsageError("charts need Altair", fix=how_to_get("report")) from error

    inline = partial(_inline, alt)
    drawn = _drawn(plan.parts[0])
    entries: list[dict[str, Any]] = [
        {"tensor": d.tensor, "role": d.role, "block": d.block, "amount": drawn.amounts[d.tensor],
         "reason": d.reason, "parameters": d.n_params}
        for d in plan if d.block is not None and d.tensor in drawn.amounts
    ]  # fmt: skip
    if not entries:
        raise UsageError("has no amounts inside blocks to draw", where=plan.model)
    roles = list(dict.fromkeys(entry["role"] for entry in entries))
    x = alt.X("block:O", title="block, data → labels", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("amount:Q", title=drawn.unit, scale=_scale(alt, [*drawn.amounts.values(), drawn.asked]))
    colors = alt.Scale(domain=roles, range=[role_color(role, palette) for role in roles])
    legend = alt.Legend(title=None, columns=6)
    shapes = alt.Scale(domain=roles, range=[SHAPES[group_of(role)] for role in roles])
    tips = [alt.Tooltip(name) for name in ("tensor:N", "role:N", "block:O", "parameters:Q", "reason:N")]
    points = (
        alt.Chart(inline(entries))
        .mark_point(filled=True, size=46, opacity=0.9)
        .encode(
            x=x,
            xOffset=alt.XOffset("role:N", sort=roles),  # side by side where a block has one amount
            y=y,
            color=alt.Color("role:N", scale=colors, title=None, legend=legend),
            shape=alt.Shape("role:N", scale=shapes, title=None, legend=legend),
            tooltip=[*tips, alt.Tooltip("amount:Q", format=".4f")],
        )
    )
    means = [{"block": block, "amount": round(mean, 6)} for block, mean in drawn.means.items()]
    line = alt.Chart(inline(means)).mark_line(color=palette["muted"], strokeWidth=1.5).encode(x=x, y=y)
    asked = [{"amount": drawn.asked}]
    rule = alt.Chart(inline(asked)).mark_rule(color=palette["rule"], strokeDash=[4, 3]).encode(y=y)
    title = alt.TitleParams(
        f"{plan.operator}, {plan.allocator}: {drawn.unit} along depth",
        subtitle=["Line: mean of the block. Dashed: the budget.", drawn.depth],
    )
    chart = alt.layer(rule, line, points).properties(width=WIDTH, height=HEIGHT, title=title)
    return chart.configure(**config(palette))


def _scale(alt: Any, amounts: list[float]) -> Any:
    """Around the amounts; where all are one, with some air, or the axis would show errors of rounding."""
    low, high = min(amounts), max(amounts)
    if high - low < 1e-4 * max(abs(high), 1.0):
        return alt.Scale(domain=[low - 0.1 * max(abs(low), 1.0), high + 0.1 * max(abs(high), 1.0)], zero=False)
    return alt.Scale(zero=False, nice=True)


def _inline(alt: Any, rows: list[dict[str, Any]]) -> Any:
    return alt.Data(values=rows)  # through Any: Altair leaves it untyped
