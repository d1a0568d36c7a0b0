"""Every chart gives a valid Vega-Lite figure that renders without a browser, and says what it cannot show."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import vl_convert

import tailwise as tw
from tailwise.audits.audit import Audit
from tailwise.core.errors import UsageError
from tailwise.report.charts.chart import CHARTS
from tailwise.report.charts.data import bins_of, places, stacked, whole_bins
from tailwise.report.charts.view import ChartView, short_names
from tailwise.report.render import plot, spec_of, write_figure
from tailwise.report.theme import DARK, LIGHT, TOKENS, group_of, role_color

NAMES = [name for name, _ in CHARTS.items()]
UNKNOWN = re.compile(">(null|NaN|undefined)<")  # what a number that is not there is written as


def view_of(name: str, audit: Audit, base: Audit, **options) -> ChartView:
    audits = (audit, base) if CHARTS[name].scope == "several" else (audit,)
    return ChartView(audits, base=base, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_chart_compiles_and_renders(name, audit, base):
    spec = spec_of(CHARTS[name], view_of(name, audit, base))
    json.dumps(spec, allow_nan=False)
    compiled = vl_convert.vegalite_to_vega(spec)
    assert compiled["$schema"].endswith("vega/v6.json")
    picture = vl_convert.vegalite_to_svg(spec)
    assert picture.count("<path") > 5
    assert CHARTS[name].title in picture
    assert not UNKNOWN.search(picture)


@pytest.mark.parametrize("name", NAMES)
def test_a_chart_says_what_is_good_and_what_is_bad(name):
    guidance = CHARTS[name].guidance
    assert guidance.reading
    assert guidance.good
    assert guidance.bad
    assert CHARTS[name].summary.endswith(".")


@pytest.mark.parametrize("name", ["alpha_hist", "correlation_flow", "heatmap", "layer", "models_alpha", "base_alpha"])
def test_the_dark_theme_takes_no_colour_of_the_light_one(name, audit, base):
    spec = spec_of(CHARTS[name], view_of(name, audit, base, palette=DARK))
    text = json.dumps({key: value for key, value in spec.items() if key != "datasets"})
    only_light = {LIGHT[key] for key in LIGHT} - set(DARK.values())
    assert not [color for color in only_light if f'"{color}"' in text]
    assert DARK["paper"] in text


@pytest.mark.parametrize("name", ["alpha_vs_D", "heatmap", "layer", "models_alpha", "base_alpha"])
def test_a_page_fills_in_every_colour_later(name, audit, base):
    spec = spec_of(CHARTS[name], view_of(name, audit, base, palette=TOKENS))
    text = json.dumps({key: value for key, value in spec.items() if key != "datasets"})
    assert '"@' in text
    assert not [color for color in LIGHT.values() if f'"{color}"' in text]


def test_a_missing_metric_names_the_option_that_provides_it(plain):
    with pytest.raises(UsageError, match="--randomize"):
        plot("traps_hist", [plain])


def test_a_chart_against_a_base_asks_for_one(audit):
    with pytest.raises(UsageError, match="base=AUDIT"):
        plot("delta_alpha", [audit])


def test_an_unknown_chart_or_theme_is_a_usage_error_with_the_nearest_name(audit):
    with pytest.raises(UsageError, match="alpha_hist"):
        plot("alpha_hits", [audit])
    with pytest.raises(UsageError, match="theme"):
        plot("alpha_hist", [audit], theme="drak")


def test_the_heat_map_takes_any_metric_and_refuses_others(audit, plain):
    assert "stable_rank" in json.dumps(plot("heatmap", [audit], metric="stable_rank").to_dict(validate=False))
    with pytest.raises(UsageError, match="metric"):
        plot("heatmap", [audit], metric="stabel_rank")
    with pytest.raises(UsageError, match="num_traps"):
        plot("heatmap", [plain], metric="num_traps")


def test_a_cell_without_a_trusted_fit_has_no_number(audit):
    first = next(layer.row for layer in audit if layer.row.block is not None)
    doubted = replace(first, metrics={**first.metrics, "ks_distance": 0.9})
    rows = [doubted if row is first else row for row in audit.rows]
    layers = {layer.row.name: layer for layer in audit} | {first.name: replace(audit[first.name], row=doubted)}
    changed = Audit(rows, layers, audit.provenance)
    picture = vl_convert.vegalite_to_svg(spec_of(CHARTS["heatmap"], ChartView((changed,))))
    assert "no trusted fit" in picture
    assert not UNKNOWN.search(picture)


def test_a_notebook_gets_an_altair_chart(audit):
    altair = pytest.importorskip("altair")
    figure = audit.plot("alpha_hist")
    assert isinstance(figure, altair.LayerChart)
    assert len(figure._repr_mimebundle_()) > 0


def test_bands_stand_only_where_the_ks_estimator_was_used(audit):
    assert "well-fit" in json.dumps(plot("alpha_hist", [audit]).to_dict(validate=False))
    facts = replace(audit.provenance, recipe={**audit.provenance.recipe, "estimator": "mid"})
    other = Audit(list(audit.rows), {layer.row.name: layer for layer in audit}, facts)
    text = json.dumps(plot("alpha_hist", [other]).to_dict(validate=False))
    assert '"band"' not in text
    assert "No bands" in text


def test_a_degenerate_exponent_is_in_no_chart(audit):
    layers = {layer.row.name: layer for layer in audit}
    name = next(iter(layers))
    layers[name] = replace(layers[name], row=replace(layers[name].row, status="DEGENERATE"))
    record = next(r for r in ChartView((Audit([x.row for x in layers.values()], layers, audit.provenance),)).records
                  if r["name"] == name)  # fmt: skip
    assert record["alpha"] is None
    assert record["stable_rank"] is not None


def test_layers_outside_the_blocks_stand_before_and_after_them(audit):
    found = dict(zip((layer.row.role for layer in audit), places(audit), strict=True))
    assert found["embed"] == -1
    assert found["lm_head"] == 4


def test_a_model_without_blocks_is_numbered_in_the_order_of_its_layers(audit):
    layers = {layer.row.name: replace(layer, row=replace(layer.row, block=None)) for layer in audit}
    flat = Audit([layer.row for layer in layers.values()], layers, audit.provenance)
    assert places(flat) == list(range(len(flat)))
    for name in ("correlation_flow", "heatmap", "models_alpha_by_layer"):
        vl_convert.vegalite_to_svg(spec_of(CHARTS[name], ChartView((flat,))))


def test_histograms_count_every_layer_once(audit):
    view = ChartView((audit,))
    for bins in (bins_of(view.values("alpha"), low=1.0, cap=3.0), bins_of(view.values("alpha"))):
        bars = stacked(view.records, "alpha", bins, view.roles)
        assert sum(bar["layers"] for bar in bars) == len(view.values("alpha"))
    assert whole_bins([0, 0, 3]).edges.tolist() == [-0.5, 0.5, 1.5, 2.5, 3.5]


def test_one_value_everywhere_still_draws(audit):
    layers = {
        layer.row.name: replace(layer, row=replace(layer.row, metrics=dict.fromkeys(layer.row.metrics, 1.0)))
        for layer in audit
    }
    same = Audit([layer.row for layer in layers.values()], layers, audit.provenance)
    for name in ("alpha_hist", "alpha_vs_D", "correlation_flow", "heatmap", "D_hist", "models_alpha"):
        vl_convert.vegalite_to_svg(spec_of(CHARTS[name], ChartView((same,))))


def test_an_audit_without_layers_is_a_usage_error(audit):
    with pytest.raises(UsageError, match="nothing to draw"):
        ChartView((Audit([], {}, audit.provenance),))


def test_a_role_has_one_colour_whatever_the_model():
    assert role_color("expert_up", LIGHT) == role_color("mlp_up", LIGHT)
    assert role_color("something new", LIGHT) == LIGHT["role.other"]
    assert group_of("expert_up") == "experts"


def test_names_are_short_and_distinct(audit):
    def named(model: str) -> Audit:
        return Audit([], {}, replace(audit.provenance, model=model))

    assert short_names([named("a/run1/model"), named("a/run2/model")]) == ["run1/model", "run2/model"]
    assert short_names([named("org/llama")]) == ["llama"]
    assert len(set(short_names([named("x"), named("x")]))) == 2


@pytest.mark.parametrize(("suffix", "start"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF"), ("json", b"{"),
                                                ("html", b"<!DOCTYPE html>")])  # fmt: skip
def test_a_figure_is_written_as_its_suffix_says(audit, tmp_path, suffix, start):
    path = write_figure(plot("alpha_hist", [audit]), tmp_path / f"x.{suffix}")
    assert path.read_bytes().lstrip().startswith(start)


def test_a_figure_of_an_unknown_suffix_is_refused(audit, tmp_path):
    with pytest.raises(UsageError, match="suffix"):
        write_figure(plot("alpha_hist", [audit]), tmp_path / "x.docx")
    assert not list(tmp_path.iterdir())


def without(audit: Audit, *hidden: str) -> Audit:
    """The same, not having measured some numbers."""

    def shown(row):
        return replace(row, metrics={name: value for name, value in row.metrics.items() if name not in hidden})

    layers = {layer.row.name: replace(layer, row=shown(layer.row)) for layer in audit}
    return Audit([shown(row) for row in audit.rows], layers, audit.provenance)


@pytest.mark.parametrize("name", [name for name, item in CHARTS.items() if item.scope in ("audit", "several")])
def test_an_audit_without_a_number_that_another_has_stops_no_chart(name, audit, base):
    bare = without(base, *(need for need in CHARTS[name].needs if need != "ks_distance"), "num_traps")
    assert spec_of(CHARTS[name], ChartView((bare, audit), base=bare))["$schema"]


def test_a_chart_tells_a_number_without_a_value_from_one_that_was_not_asked_for(audit, base):
    flat = tw.audit({"layers.0.mlp.up_proj.weight": np.eye(80, 64)}, use_cache=False, baseline_replicas=2)
    with pytest.raises(UsageError, match="no layer has a value of alpha") as raised:
        spec_of(CHARTS["alpha_hist"], ChartView((flat,)))
    assert "--metrics" not in str(raised.value)
    with pytest.raises(UsageError, match="needs num_traps, which this audit does not have") as raised:
        spec_of(CHARTS["traps_hist"], ChartView((flat,)))
    assert "--randomize" in str(raised.value)


def test_a_mean_of_alpha_is_of_trusted_fits_and_says_how_many():
    rng = np.random.default_rng(3)

    def heavy() -> np.ndarray:
        left, _, right = np.linalg.svd(rng.standard_normal((96, 64)), full_matrices=False)
        return (left * np.arange(1, 65) ** -0.7) @ right

    noise = {f"layers.{i}.up.weight": rng.standard_normal((96, 64)) for i in range(3)}
    mixed = {**noise, "layers.0.up.weight": heavy(), "layers.1.up.weight": heavy()}
    audits = {name: tw.audit(one, use_cache=False) for name, one in (("init", noise), ("trained", mixed))}
    means = tw.plot("models_alpha", audits).to_dict()["datasets"]["means"]
    assert [(row["model"], row.get("mean")) for row in means] == [
        ("init", None),
        ("trained", pytest.approx(audits["trained"].summary()["alpha"], rel=1e-4)),
    ]
    assert means[0]["says"] == "no verdict: 0 of 3 fits trusted"
    assert means[1]["says"].endswith("(2 of 3 fits trusted)")
    alone = tw.plot("models_alpha", audits["init"]).to_dict()["datasets"]["means"]
    assert [row["says"] for row in alone] == ["no verdict: 0 of 3 fits trusted"]
    by_layer = json.dumps(tw.plot("models_alpha_by_layer", audits).to_dict()["layer"])
    assert by_layer.count("median(") or '"op": "median"' in by_layer
    assert "!datum.poor" in by_layer.partition('"op": "median"')[0].rpartition('"transform"')[2]
