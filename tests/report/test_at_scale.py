"""Charts of deep models, of rows and bands, and of values that lie together or beyond."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.audits.rows import Layer, LayerRow, Provenance
from tailwise.report.charts.data import bins_of
from tailwise.report.charts.deep import MANY_BLOCKS, stretches
from tailwise.report.charts.heat import cells_of
from tailwise.report.charts.timeline import series_chart
from tailwise.report.charts.view import ChartView
from tailwise.report.theme import LIGHT
from tailwise.spectrum.spectrum import Spectrum

pytest.importorskip("altair")

ODD = "layers.40.mlp.up_proj"


def deep(blocks: int, experts: int = 1) -> Audit:
    """Two roles along depth, one layer far from its neighbours, an embedding and a head."""
    rng, rows = np.random.default_rng(0), []
    places = [("embed", None, "embed"), *(
        (role, block, f"layers.{block}.{name}" + (f".{expert}" if experts > 1 else ""))
        for block in range(blocks) for expert in range(experts)
        for role, name in (("mlp_up", "mlp.up_proj"), ("attn_q", "self_attn.q_proj"))
    ), ("lm_head", None, "lm_head")]  # fmt: skip
    for role, block, name in places:
        alpha = 9.0 if name == ODD else 3 + 0.1 * rng.standard_normal()
        metrics = {"alpha": alpha, "alpha_sigma": 0.1, "ks_distance": 0.02, "num_pl_spikes": 40.0,
                   "alpha_hill": 2.5, "alpha_hill_baseline": 9.0, "stable_rank": 10.0 + rng.normal()}  # fmt: skip
        rows.append(LayerRow(name, role, block, "dense", 100, 200, 1, "F32", "OK", metrics=metrics))
    layers = {row.name: Layer(row, Spectrum(np.linspace(1, 9, 100), 100, 200)) for row in rows}
    facts = Provenance("a/deep", "memory", None, "", {"estimator": "ks"}, {}, {}, "cpu", 1, "", 0.0, 0, 0)
    return Audit(rows, layers, facts)


@pytest.mark.parametrize("name", ["correlation_flow", "hill_by_layer", "stable_rank_by_layer"])
def test_above_64_blocks_bands_take_the_place_of_points(name):
    few = tw.plot(name, deep(MANY_BLOCKS)).to_dict()
    many = tw.plot(name, deep(MANY_BLOCKS + 16)).to_dict()
    assert not any(key.startswith("deep_") for key in few["datasets"])
    (rows,) = [rows for key, rows in many["datasets"].items() if key.startswith("deep_")]
    assert {row["kind"] for row in rows} <= {"band", "outlier", "layer"}
    assert len(rows) < 80, "a picture of stretches, not of layers"


@pytest.mark.parametrize("experts", [1, 4])
def test_what_stands_out_is_named_and_is_no_part_of_a_band(experts):
    records = ChartView((deep(90, experts),)).records
    records[200 if experts > 1 else 81]["alpha"] = 9.0
    odd = records[200 if experts > 1 else 81]["name"]
    rows = stretches(records, "alpha", log=True)
    out = [row for row in rows if row["kind"] == "outlier"]
    assert odd in [row["name"] for row in out]
    assert next(row for row in out if row["name"] == odd)["said"]
    assert max(row["p90"] for row in rows if row["kind"] == "band") < 4
    bands = [row for row in rows if row["kind"] == "band"]
    assert sum(row["layers"] for row in bands) + len(out) == 2 * 90 * experts
    assert all(row["p10"] <= row["p25"] <= row["p50"] <= row["p75"] <= row["p90"] for row in bands)


def test_the_heat_map_is_scaled_along_each_row():
    records = [
        {"role": role, "place": place, "m": scale * (place + 1), "poor": False}
        for role, scale in (("a", 1.0), ("b", 1000.0))
        for place in range(3)
    ]
    cells = cells_of(records, "m", trusted=False)
    assert [row["share"] for row in cells] == [0, 0.5, 1, 0, 0.5, 1]
    (lone,) = cells_of(records[:1], "m", trusted=False)
    assert lone["share"] == 0.5


def test_the_heat_map_of_alpha_is_coloured_by_bands_of_trusted_fits():
    records = [{"role": "a", "place": place, "alpha": alpha, "poor": poor}
               for place, (alpha, poor) in enumerate([(1.5, False), (3.0, False), (5.0, False), (9.0, False),
                                                      (3.0, True)])]  # fmt: skip
    records.append({"role": "a", "place": 1, "alpha": 40.0, "poor": True})
    cells = cells_of(records, "alpha", trusted=True)
    assert [row["band"].split()[0] for row in cells] == ["<", "2–4", "4–6", ">", "no"]
    assert cells[1]["value"] == 3.0, "the mean is of the trusted ones"
    assert (cells[1]["layers"], cells[4]["value"]) == (2, None)


@pytest.mark.parametrize("value", [0.05, 3.0, -2.0, 0.0])
def test_values_that_are_all_one_fill_a_bin(value):
    bins = bins_of([value] * 9)
    assert len(bins.edges) >= 2
    assert bins.edges[0] <= value <= bins.edges[-1]
    assert np.diff(bins.edges).min() > 1e-3


def test_a_histogram_reaches_to_its_line():
    found = tw.plot("D_hist", deep(4)).to_dict()
    domains = {tuple(layer["encoding"]["x"]["scale"]["domain"]) for layer in found["layer"]
               if isinstance(layer["encoding"].get("x"), dict) and "scale" in layer["encoding"]["x"]}  # fmt: skip
    assert all(low <= 0.1 <= high for low, high in domains)
    assert domains


def test_the_zone_below_two_is_there_where_the_words_speak_of_one():
    audit = deep(4)
    for name, options in (("models_alpha_by_layer", {}), ("models_alpha", {}), ("base_alpha", {"base": deep(4)})):
        given = audit if options else [audit, deep(5)]
        text = tw.plot(name, given, **options).to_json()
        assert "below 2" in text or "< 2 over-trained" in text


def series(layers: int, steps: int) -> pa.Table:
    lines = [(step, f"layers.{layer}.w", "mlp_up", 3.0 + layer) for step in range(steps) for layer in range(layers)]
    step, layer, role, alpha = zip(*lines, strict=True)
    return pa.table({"step": step, "layer": layer, "role": role, "alpha": alpha})


@pytest.mark.parametrize(("layers", "steps", "lines"), [(3, 20, 3), (300, 200, 300), (500, 5, 0), (3, 1, 0)])
def test_every_layer_has_a_line_that_the_pointer_shows(layers, steps, lines):
    found = series_chart(series(layers, steps), "alpha", [], LIGHT).to_dict()
    rows = found["datasets"].get("lines", [])
    assert len({row["layer"] for row in rows}) == lines
    assert len(rows) <= 12_000
    assert ("near" in str(found)) == bool(lines)


def test_every_table_that_scrolls_can_be_scrolled_by_keyboard():
    root = Path(sys.modules["tailwise"].__file__).parent
    for file in (*root.rglob("*.html"), *(root / "report").rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert text.count('class="scroll') == len(re.findall(r'class="scroll[ a-z]*" tabindex="0"', text)), file
