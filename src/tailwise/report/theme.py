"""Two themes, one for light and one for dark paper, with the same meaning of every colour.

Role colours go back to Okabe & Ito's colour-blind-safe set, lightened for dark paper; shapes repeat the group of
the role, so that no reading depends on colour alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tailwise.core.errors import unknown_name

#: (light, dark) of every colour by what it means.
_COLORS: Mapping[str, tuple[str, str]] = {
    "paper": ("#ffffff", "#15181d"),
    "ink": ("#1f242b", "#e7eaee"),
    "muted": ("#5a636e", "#a3adb8"),
    "grid": ("#e6e9ed", "#2a3038"),
    "rule": ("#a9b1bb", "#59636f"),
    "noise": ("#9aa3ad", "#75808c"),
    "accent": ("#1f6fc0", "#6bb0ff"),
    "contrast": ("#c8501e", "#ff9a5c"),
    "better": ("#0b7a5c", "#3ecf9f"),
    "worse": ("#b3402a", "#ff8f78"),
    "band.over": ("#ece4f8", "#2c2340"),
    "band.good": ("#dcf1e7", "#143a2d"),
    "band.weak": ("#fcf1d3", "#3a3013"),
    "band.under": ("#fbe1d8", "#42231b"),
    "cell.over": ("#b98ad6", "#6b4a8a"),
    "cell.good": ("#7cc4a0", "#2f7a57"),
    "cell.weak": ("#f0cf78", "#86661a"),
    "cell.under": ("#e79478", "#9c4930"),
    "heat.low": ("#f2f4f8", "#1c222b"),
    "heat.high": ("#12477f", "#9ccbff"),
    "role.attn_q": ("#1f6fc0", "#6bb0ff"),
    "role.attn_k": ("#3fa7dd", "#8fdcff"),
    "role.attn_v": ("#0b8a68", "#3ecf9f"),
    "role.attn_o": ("#7553c4", "#b79cff"),
    "role.mlp_gate": ("#b8860b", "#f2c14e"),
    "role.mlp_up": ("#d2571c", "#ff9a5c"),
    "role.mlp_down": ("#b8327a", "#f27cba"),
    "role.embed": ("#7c8591", "#a9b3be"),
    "role.lm_head": ("#4b535d", "#d3dae2"),
    "role.other": ("#7d7a1f", "#c9c65a"),
}

#: Colours of models side by side; at most this many are told apart.
MODEL_COLORS = ("accent", "contrast", "role.attn_v", "role.mlp_down", "role.mlp_gate", "role.attn_o", "role.attn_k",
                "ink")  # fmt: skip

#: Roles that share the colour of another: the same place in a block under another architecture.
_LIKE: Mapping[str, str] = {
    "attn_qkv": "attn_q",
    "attn_kv": "attn_k",
    "attn_q_a": "attn_q",
    "attn_q_b": "attn_q",
    "attn_kv_a": "attn_k",
    "attn_kv_b": "attn_k",
    "mlp_gate_up": "mlp_up",
    "attn_index": "attn_k",
    "attn_pos": "attn_k",
    "attn_mlp_in": "attn_q",
    "attn_mlp_out": "attn_o",
    "pos_embed": "embed",
    "patch_embed": "embed",
    "time_embed": "embed",
    "cond_embed": "embed",
    "codebook": "embed",
    "classifier": "lm_head",
    "regressor": "lm_head",
    "patch_out": "lm_head",
    "pooler": "lm_head",
    "conv": "attn_q",
    "ssm_in": "attn_q",
    "ssm_x": "attn_k",
    "ssm_dt": "attn_v",
    "ssm_out": "attn_o",
    "rwkv_r": "attn_q",
    "rwkv_k": "attn_k",
    "rwkv_v": "attn_v",
    "rwkv_o": "attn_o",
    "rwkv_ffn_k": "mlp_up",
    "rwkv_ffn_v": "mlp_down",
    "rwkv_ffn_r": "mlp_gate",
    "rnn_ih": "attn_q",
    "rnn_hh": "mlp_up",
}
SHAPES = {"attention": "circle", "MLP": "triangle-up", "experts": "diamond", "other": "square"}

Palette = Mapping[str, str]

LIGHT: Palette = {name: pair[0] for name, pair in _COLORS.items()}
DARK: Palette = {name: pair[1] for name, pair in _COLORS.items()}
#: Names instead of colours, for a page that fills them in when it is read: `@ink`.
TOKENS: Palette = {name: f"@{name}" for name in _COLORS}
THEMES: Mapping[str, Palette] = {"light": LIGHT, "dark": DARK}

FONT = "Helvetica Neue, Helvetica, Arial, Liberation Sans, sans-serif"


def palette_of(theme: str) -> Palette:
    """The colours of a theme. Raises `UsageError` for an unknown one."""
    if theme not in THEMES:
        raise unknown_name("theme", theme, THEMES)
    return THEMES[theme]


def group_of(role: str) -> str:
    """The kind of layer that a role belongs to, which sets its shape."""
    if role.startswith(("attn", "rwkv_", "ssm")):
        return "attention"
    if role.startswith("mlp"):
        return "MLP"
    return "experts" if role.startswith(("expert", "shared")) else "other"


def role_color(role: str, palette: Palette) -> str:
    """The colour of a role, the same in every chart and for every model."""
    plain = role.replace("expert_", "mlp_").replace("shared_", "mlp_")
    return palette.get(f"role.{_LIKE.get(plain, plain)}", palette["role.other"])


def config(palette: Palette) -> dict[str, Any]:
    """The Vega-Lite config of a theme."""
    ink, muted, rule = palette["ink"], palette["muted"], palette["rule"]
    return {
        "background": palette["paper"],
        "font": FONT,
        "padding": 14,
        "view": {"stroke": None},
        "axis": {
            "labelColor": muted,
            "titleColor": ink,
            "gridColor": palette["grid"],
            "domainColor": rule,
            "tickColor": rule,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 12,
            "labelOverlap": "parity",
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": ink,
            "titleColor": muted,
            "titleFontWeight": "normal",
            "labelFontSize": 11,
            "titleFontSize": 11,
            "symbolSize": 70,
            "orient": "bottom",
            "direction": "horizontal",
            "columns": 6,
            "labelLimit": 190,
        },
        "header": {"labelColor": ink, "labelFontSize": 12, "labelFontWeight": "bold", "titleColor": muted},
        "title": {
            "anchor": "start",
            "frame": "group",
            "color": ink,
            "fontSize": 15,
            "subtitleColor": muted,
            "subtitleFontSize": 12,
            "subtitleLineHeight": 16,
            "subtitlePadding": 5,
            "offset": 14,
            "limit": 900,
        },
        "text": {"color": ink, "fontSize": 11},
    }
