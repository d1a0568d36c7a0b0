"""Draws docs/images/overview.svg from the audit of the shipped example.

pip install -e ".[docs]" && python docs/figures.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import altair as alt
import numpy as np

import tailwise as tw
from tailwise.spectrum.marchenko_pastur import gaussian_spectra

ROOT = Path(__file__).resolve().parent.parent
IMAGE = ROOT / "docs" / "images" / "overview.svg"
LAYER = "model.layers.1.mlp.gate_proj"
ROLES = ("attn_q", "attn_k", "attn_v", "attn_o", "mlp_gate", "mlp_up", "mlp_down")
REPLICAS = 200  # noise matrices behind the grey histogram
BINS_PER_DECADE = 14
BLUE, ORANGE, GREY, INK = "#2563a8", "#d9622b", "#9aa3ad", "#22272e"
AXIS = {"labelColor": INK, "titleColor": INK, "titleFontWeight": "normal", "gridColor": "#e7eaee", "domainColor": GREY}
FONT = "Helvetica, Arial, sans-serif"


def spectrum_panel(layer: tw.Layer) -> alt.LayerChart:
    """Histogram of one layer's eigenvalues, of noise of the same shape and norm, and the fitted tail."""
    spectrum, fit = layer.spectrum, tw.fit_tail(layer.spectrum.eigenvalues, "ks")
    noise = np.concatenate(
        [
            draw.eigenvalues * spectrum.eigenvalues.sum() / draw.eigenvalues.sum()
            for draw in gaussian_spectra(spectrum.rows, spectrum.cols, 1, REPLICAS, 0)
        ]
    )
    low = np.floor(np.log10(spectrum.eigenvalues[0]) * BINS_PER_DECADE) / BINS_PER_DECADE
    edges = 10 ** np.arange(low, np.log10(spectrum.eigenvalues[-1]) + 2 / BINS_PER_DECADE, 1 / BINS_PER_DECADE)
    bars = [
        {"low": edges[i], "high": edges[i + 1], "count": count, "what": what}
        for what, values, weight in (("noise", noise, 1 / REPLICAS), ("trained", spectrum.eigenvalues, 1.0))
        for i, count in enumerate(np.histogram(values, edges)[0] * weight)
        if count > 0
    ]
    # Eigenvalues that a bin of the power law's tail would hold: k·(α−1)·(λ/λ_min)^{1−α} per unit of ln λ.
    at = np.geomspace(fit.lambda_min, fit.lambda_max, 60)
    per_bin = fit.k * (fit.alpha - 1) * (at / fit.lambda_min) ** (1 - fit.alpha) * np.log(10) / BINS_PER_DECADE
    curve = [{"low": float(x), "count": float(y)} for x, y in zip(at, per_bin, strict=True)]
    x = alt.X("low:Q", scale=alt.Scale(type="log", domain=[edges[0], edges[-1]], nice=False),
              title="eigenvalue λ of WᵀW (log scale)", axis=alt.Axis(grid=False, tickCount=5, format="~g"))  # fmt: skip
    y = alt.Y("count:Q", title="eigenvalues per bin", scale=alt.Scale(domainMin=0),
              axis=alt.Axis(grid=True, tickCount=5))  # fmt: skip
    base = alt.Chart(alt.Data(values=bars))
    grey = base.transform_filter("datum.what == 'noise'").mark_bar(color=GREY, opacity=0.55, stroke=None)
    blue = base.transform_filter("datum.what == 'trained'").mark_bar(color=BLUE, opacity=0.85, stroke="white")
    line = alt.Chart(alt.Data(values=curve)).mark_line(color=ORANGE, strokeWidth=2.5).encode(x=x, y=y)
    top = max(bar["count"] for bar in bars)
    left = float(noise.max()) * 1.15
    return alt.layer(
        grey.encode(x=x, x2="high:Q", y=y, y2=alt.datum(0)),
        blue.encode(x=x, x2="high:Q", y=y, y2=alt.datum(0)),
        line,
        _note(left, top * 0.95, "Gaussian noise of the same shape and norm", "#6b7480"),
        _note(left, top * 0.83, "this layer, trained", BLUE),
        _note(left, top * 0.71, f"power law fitted to the largest {fit.k} of {spectrum.m}:", ORANGE),
        _note(left, top * 0.61, f"α = {fit.alpha:.2f} ± {fit.sigma:.2f}, distance D = {fit.ks_distance:.3f}", ORANGE),
    ).properties(
        width=760,
        height=210,
        title=alt.Title(
            f"The spectrum of one weight matrix: {LAYER} ({spectrum.rows}×{spectrum.cols})",
            subtitle="Noise keeps to one band; the trained matrix spreads over 3.5 decades, with a long right tail.",
        ),
    )


def _note(x: float, y: float, text: str, color: str) -> alt.Chart:
    data = alt.Data(values=[{"low": x, "count": y, "text": text}])
    mark = alt.Chart(data).mark_text(align="left", color=color, fontSize=12.5, fontWeight="bold")
    return mark.encode(x="low:Q", y="count:Q", text="text:N")


def depth_panel(audit: tw.Audit) -> alt.HConcatChart:
    """alpha_hill along depth, one small chart per role, with the noise of that role's shape."""
    charts = []
    for position, role in enumerate(ROLES):
        rows = [layer.row for layer in audit if layer.row.role == role]
        values = [
            {
                "block": row.block,
                "alpha": row.metrics["alpha_hill"],
                "low": row.metrics["alpha_hill"] - row.metrics["alpha_hill_sigma"],
                "high": row.metrics["alpha_hill"] + row.metrics["alpha_hill_sigma"],
                "noise": row.metrics["alpha_hill_baseline"],
                "noise_low": row.metrics["alpha_hill_baseline"] - row.metrics["alpha_hill_baseline_sd"],
                "noise_high": row.metrics["alpha_hill_baseline"] + row.metrics["alpha_hill_baseline_sd"],
            }
            for row in rows
        ]
        first = position == 0
        base = alt.Chart(alt.Data(values=values)).encode(
            x=alt.X("block:Q", title="block", axis=alt.Axis(values=[0, 3, 7], grid=False, format="d"))
        )
        axis = alt.Axis(values=[2, 3, 4, 6, 8, 10], labels=first, ticks=first, domain=first, grid=True)
        y = alt.Scale(type="log", domain=[1.4, 11.5], nice=False)
        title = "α of the largest 10 % (log scale)" if first else None
        charts.append(
            alt.layer(
                base.mark_area(color=GREY, opacity=0.45).encode(
                    y=alt.Y("noise_low:Q", scale=y, axis=axis, title=title), y2="noise_high:Q"
                ),
                base.mark_line(color=GREY, strokeDash=[4, 3]).encode(y="noise:Q"),
                base.mark_rule(color=BLUE, opacity=0.45, strokeWidth=2).encode(y="low:Q", y2="high:Q"),
                base.mark_line(color=BLUE, strokeWidth=1.5, opacity=0.7).encode(y="alpha:Q"),
                base.mark_circle(color=BLUE, size=42, opacity=1).encode(y="alpha:Q"),
            ).properties(
                width=96,
                height=170,
                title=alt.Title(role, subtitle=f"{rows[0].rows}×{rows[0].cols}", anchor="middle", fontSize=12),
            )
        )
    return alt.hconcat(*charts, spacing=12).properties(
        title=alt.Title(
            "The tail along depth, by role: every matrix of the eight blocks",
            subtitle=[
                "Blue: α ± standard error; lower is a heavier tail. Grey: Gaussian noise of that shape, mean ± sd.",
                "A role is compared with its own noise, never with a fixed threshold or with another role.",
            ],
        )
    )


def main() -> None:
    """Audit the example and write the image."""
    with tempfile.TemporaryDirectory() as cache:
        audit = tw.audit(str(ROOT / "examples" / "pycode-8m"), cache_dir=Path(cache))
    chart = (
        alt.vconcat(spectrum_panel(audit[LAYER]), depth_panel(audit), spacing=34)
        .configure(background="white", padding=16, font=FONT)
        .configure_view(stroke=None)
        .configure_axis(
            labelColor=INK,
            titleColor=INK,
            gridColor="#e7eaee",
            titleFontWeight="normal",
            domainColor=GREY,
            tickColor=GREY,
        )
        .configure_title(
            anchor="start", fontSize=15, color=INK, subtitleColor="#57606a", subtitleFontSize=12, offset=10
        )
    )
    IMAGE.parent.mkdir(exist_ok=True)
    chart.save(IMAGE)
    print(f"written to {IMAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
