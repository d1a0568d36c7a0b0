"""Tables at the width of a terminal: whole numbers, both ends of names, no line too long."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.cells import cell_len
from rich.console import Console

import tailwise as tw
from tailwise.report import terminal
from tailwise.report.terminal import shortened


@pytest.fixture(scope="module")
def audit():
    rng = np.random.default_rng(0)
    names = (
        f"model.language_model.layers.{block}.self_attn.{part}_proj.weight" for block in range(12) for part in "qkvo"
    )
    return tw.audit({name: rng.standard_normal((128, 512)) for name in names}, use_cache=False)


def shown(audit, width: int) -> list[str]:
    console = Console(width=width, file=io.StringIO(), color_system=None)
    console.print(terminal.layers(audit, 0, tw.diagnose(audit)))
    console.print(terminal.by_role(audit))
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200])
def test_no_line_is_too_long_and_no_number_is_cut(audit, width):
    lines = shown(audit, width)
    assert max(map(cell_len, lines)) <= width
    layers = [line for line in lines if "_proj" in line]
    assert len(layers) == 48
    for line in layers:
        # An ellipsis stands in names alone.
        assert "…" not in line.split("_proj", 1)[1]
        assert line.startswith("model.")
    if width >= 80:
        assert all(re.search(r"\d\.\d\d ± \d+\.\d\d|– ", line) for line in layers)
        assert all("TW201" in line for line in layers)


def test_a_wide_terminal_has_every_column(audit):
    head = shown(audit, 200)[0]
    assert all(
        title in head for title in ("layer", "role", "α ± σ", "D", "z Hill", "stable rank", "entropy", "finding")
    )
    narrow = shown(audit, 80)[0]
    assert "entropy" not in narrow
    assert all(title in narrow for title in ("layer", "role", "α ± σ", "z Hill", "finding"))


def test_names_keep_both_ends():
    assert shortened("model.layers.17.self_attn.q_proj", 20) == "model.laye…tn.q_proj"
    assert shortened("short", 20) == "short"
