"""A plan along depth."""

from __future__ import annotations

from functools import partial
from typing import Any

from tailwise.compression.plans.correlation import block_means, depth_correlation
from tailwise.compression.plans.plan import Plan
from tailwise.errors import UsageError
from tailwise.report.theme import SHAPES, Palette, config, group_of, role_color

WIDTH, HEIGHT = 640, 320


def plan_chart(plan: Plan, palette: Palette) -> Any:
    """Amount of every tensor along depth, coloured by role, with the blocks' means and the budget. An Altair chart.

    Needs `tailwise[report]`.
    """
    try:
        import altair as alt
    except ImportError as error:
        raise UsageError("charts need Altair", fix="pip install 'tailwise[report]'") from error

    inline = partial(_inline, alt)
    entries: list[dict[str, Any]] = [
        {"tensor": d.tensor, "role": d.role, "block": d.block, "amount": d.sparsity, "reason": d.reason,
         "parameters": d.n_params}
        for d in plan if d.block is not None and d.sparsity is not None
    ]  # fmt: skip
    if not entries:
        raise UsageError("has no amounts inside blocks to draw", where=plan.model)
    roles = list(dict.fromkeys(entry["role"] for entry in entries))
    x = alt.X("block:O", title="block, data → labels", axis=alt.Axis(labelAngle=0, labelOverlap=True))
    y = alt.Y("amount:Q", title="sparsity", scale=alt.Scale(zero=False, nice=True))
    colors = alt.Scale(domain=roles, range=[role_color(role, palette) for role in roles])
    shapes = alt.Scale(domain=roles, range=[SHAPES[group_of(role)] for role in roles])
    tips = [alt.Tooltip(name) for name in ("tensor:N", "role:N", "block:O", "parameters:Q", "reason:N")]
    points = (
        alt.Chart(inline(entries))
        .mark_point(filled=True, size=46, opacity=0.9)
        .encode(
            x=x,
            xOffset=alt.XOffset("role:N", sort=roles),  # side by side where a block has one amount
            y=y,
            color=alt.Color("role:N", scale=colors, title=None),
            shape=alt.Shape("role:N", scale=shapes, title=None),
            tooltip=[*tips, alt.Tooltip("amount:Q", format=".4f")],
        )
    )
    means = [{"block": block, "amount": mean} for block, mean in block_means(plan).items()]
    line = alt.Chart(inline(means)).mark_line(color=palette["muted"], strokeWidth=1.5).encode(x=x, y=y)
    asked = [{"amount": plan.budget.get("asked", plan.sparsity)}]
    rule = alt.Chart(inline(asked)).mark_rule(color=palette["rule"], strokeDash=[4, 3]).encode(y=y)
    title = alt.TitleParams(
        f"{plan.operator}, {plan.allocator}: sparsity along depth",
        subtitle=["Line: mean of the block. Dashed: the budget.", depth_correlation(plan).words],
    )
    chart = alt.layer(rule, line, points).properties(width=WIDTH, height=HEIGHT, title=title)
    return chart.configure(**config(palette))


def _inline(alt: Any, rows: list[dict[str, Any]]) -> Any:
    return alt.Data(values=rows)  # through Any: Altair leaves it untyped
