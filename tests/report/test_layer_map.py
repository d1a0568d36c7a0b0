"""The map of layers: every matrix has a cell that links to it, and colours say what they say."""

from __future__ import annotations

import re
from dataclasses import replace
from html import unescape

import numpy as np
import pytest

import tailwise as tw
from tailwise.judging.diagnosis.atlas import Atlas, counted, default
from tailwise.judging.diagnosis.finding import Finding
from tailwise.report.layer_map import layer_map, paints


@pytest.fixture(scope="module")
def audit():
    rng = np.random.default_rng(0)
    parts = {"mlp.up_proj": (256, 96), "self_attn.q_proj": (96, 96)}
    made = {f"model.layers.{b}.{part}.weight": rng.standard_normal(shape) * (1 + (rng.random(shape) < 0.01) * 9)
            for b in range(4) for part, shape in parts.items()}  # fmt: skip
    return tw.audit({**made, "lm_head.weight": rng.standard_normal((200, 96))}, use_cache=False)


def to(rows) -> str:
    return f'href="#{rows[0].name}"'


def test_every_matrix_has_a_cell_for_each_way_to_colour(audit):
    ways = paints(audit)
    text = layer_map(audit, tw.diagnose(audit), to)
    for layer in audit:
        assert text.count(f'href="#{layer.row.name}"') == len(ways)
    assert [way.key for way in ways] == ["effective_rank", "stable_rank", "alpha"]


def test_without_enough_healthy_models_alpha_is_the_only_way(audit):
    assert [way.key for way in paints(audit, Atlas())] == ["alpha"]


def test_colours_are_those_of_the_bands(audit):
    (way,) = paints(audit, Atlas())
    for layer in audit:
        color, said = way.colors[layer.row.name]
        if color != "a-":
            alpha = layer.row.metrics["alpha"]
            assert color == f"a{sum(alpha >= bound for bound in (2, 4, 6))}"
            assert f"{alpha:.2f}" in said


def test_findings_ring_their_cells_and_names_stay_data(audit):
    found = tw.diagnose(audit)
    named = {name for item in found.findings if not item.noted for name in item.layers}
    text = layer_map(audit, found, to, Atlas())
    ringed = {unescape(one) for one in re.findall(r'class="cell [^"]*hit-\w+" href="#([^"]+)"', text)}
    assert ringed == named
    noise = np.random.default_rng(0).standard_normal((60, 60))
    hostile = tw.audit({'layers.0.<img src=x>".weight': noise}, use_cache=False)
    assert "<img" not in layer_map(hostile, tw.diagnose(hostile), lambda rows: 'href="#"', Atlas())


def test_nothing_measured_is_no_map():
    empty = tw.audit({"norm.weight": np.ones(8)}, use_cache=False)
    assert layer_map(empty, tw.diagnose(empty), to) == ""


def test_a_ring_and_a_shared_cell_are_in_the_legend_and_nothing_that_is_not_there(audit):
    healthy = tw.diagnose(audit)
    plain = layer_map(audit, replace(healthy, findings=()), to, Atlas())
    assert "ring:" not in plain
    assert "share the cell" not in plain
    named = next(iter(audit)).row.name
    for severity in ("error", "warning"):
        made = Finding("TW201", "t", severity, "m", (named,), (), (), (), (), "theory")
        text = layer_map(audit, replace(healthy, findings=(made,)), to, Atlas())
        assert re.findall(r"ring: an? (\w+) names it", text) == [severity]
        assert f'<span class="cell plain hit-{severity}"></span>' in text


def test_a_shared_cell_says_of_how_many_it_shows_the_middle_one(audit):
    rows = [layer.row for layer in audit if layer.row.role == "mlp_up"]
    good = {"alpha_sigma": 0.1, "ks_distance": 0.01, "alpha_hill_z": 9.0}
    fits = [
        replace(row, block=0, metrics={**row.metrics, **good, "alpha": alpha})
        for row, alpha in zip(rows, (1.5, 3.0, 9.0, 3.0), strict=True)
    ]
    fits[3] = replace(fits[3], metrics={**fits[3].metrics, "ks_distance": 0.9})
    shared = type(audit)(fits, {row.name: replace(audit[row.name], row=row) for row in fits}, audit.provenance)
    text = unescape(layer_map(shared, tw.diagnose(shared), to, Atlas()))
    (cell,) = re.findall(r'<a class="(cell [^"]*)"[^>]* title="([^"]*)"[^>]*>(.*?)</a>', text)
    assert cell[0].startswith("cell a1"), "3.0 is the middle one of what has a trusted fit"
    assert cell[1].endswith("the colour is that of the middle one of 3 of 4 matrices, with α 3.00")
    assert cell[2] == "<b>4</b>"
    assert "n matrices share the cell" in text


def test_the_caption_says_how_many_healthy_models_and_which_is_left_out():
    whole = default()
    assert counted(whole, whole) == f"{len(whole)} healthy models"
    fewer = whole.but([whole.members[0].name])
    assert counted(fewer, whole).startswith(f"{len(whole) - 1} healthy models (of the atlas' {len(whole)},")
