"""The pictures, the page and the terminal of a precision study."""

from __future__ import annotations

import base64
import gzip
import html
import io
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest

from tailwise.audits.precision.prediction import Prediction
from tailwise.audits.precision.study import MEASURES, LayerStudy, PrecisionStudy, Reading
from tailwise.audits.precision.verdict import Bound
from tailwise.core.errors import UsageError
from tailwise.report.theme import DARK, LIGHT

pytest.importorskip("altair")
pytest.importorskip("vl_convert")

from tailwise.report.precision import precision_words as words
from tailwise.report.precision.figures import FIGURES, plot_study
from tailwise.report.precision.page import report, write_report
from tailwise.report.precision.pictures import Bars, ladder, middle_cut
from tailwise.report.precision.plots import batches, safe_name, write_plots
from tailwise.report.precision.precision_summary import by_format, shown
from tailwise.report.precision.precision_terminal import terminal
from tailwise.report.precision.precision_view import StudyView
from tailwise.report.precision.sections import nudged
from tailwise.report.shell import bundle
from tailwise.report.terminal import console

#: format → bits per weight, relative error of a plain layer.
FORMATS = {
    "fp32": (32, 0.0), "fp16": (16, 1.7e-4), "bf16": (16, 1.7e-3), "fp8_e4m3": (8.06, 0.026), "fp8_e5m2": (8.06, 0.052),
    "int8": (8.06, 0.008), "mxfp8": (8.25, 0.027), "mxfp6": (6.25, 0.07), "nf4": (4.5, 0.09), "nvfp4": (4.5, 0.095),
    "mxfp4": (4.25, 0.12), "int4-g128": (4.13, 0.105), "int3-g128": (3.13, 0.23), "int2-g128": (2.13, 0.6),
}  # fmt: skip
ROLES = {
    "self_attn.q_proj": ("attn_q", 3.0), "self_attn.k_proj": ("attn_k", 2.8), "self_attn.v_proj": ("attn_v", 4.5),
    "self_attn.o_proj": ("attn_o", 4.0), "mlp.gate_proj": ("mlp_gate", 5.0), "mlp.up_proj": ("mlp_up", 6.5),
    "mlp.down_proj": ("mlp_down", 7.5),
}  # fmt: skip


def reading(name: str, alpha: float, sigma: float, rng: np.random.Generator) -> Reading:
    bits, error = FORMATS[name]
    error *= float(np.exp(0.12 * rng.standard_normal()))
    if error == 0:
        return Reading(name, bits, alpha=alpha, alpha_sigma=sigma, k=25, n_eigs=256, method="top/gram", alpha_shift=0.0,
                       alpha_shift_se=0.0, relative_error=0.0, spectral_distance=0.0, stable_rank_change=0.0,
                       overlap=1.0)  # fmt: skip
    shift = alpha * error * 1.4 * float(rng.normal(0.5, 0.5))
    return Reading(
        name, bits, alpha=alpha + shift, alpha_sigma=sigma, k=25, n_eigs=256, method="top/gram", alpha_shift=shift,
        alpha_shift_se=0.6 * error * sigma, relative_error=error, sqnr_db=-20 * float(np.log10(error)),
        spectral_distance=error * 0.8, stable_rank_change=error**2 * float(rng.uniform(0.5, 2)),
        overlap=max(0.0, 1 - error**1.5 * float(rng.uniform(0.5, 1.5))),
        overflow=0, underflow=int(error * 40), seconds=0.1,
    )  # fmt: skip


def layer(name: str, category: str, block: int | None, alpha: float, rng: np.random.Generator, formats) -> LayerStudy:
    alpha *= float(np.exp(0.1 * rng.standard_normal()))
    sigma = (alpha - 1) / 5
    readings = {form: reading(form, alpha, sigma, rng) for form in formats}
    return LayerStudy(name, category, block, 256, 688, 256 * 688, "bf16", alpha=alpha, alpha_sigma=sigma,
                      stable_rank=12.5, readings=readings)  # fmt: skip


def make(blocks: int = 8, formats=tuple(FORMATS), prefix: str = "model.layers") -> PrecisionStudy:
    """A model of `7 · blocks + 2` layers with plausible numbers."""
    rng = np.random.default_rng(blocks)
    layers = [layer("model.embed_tokens", "embed", None, 5.0, rng, formats)]
    for block in range(blocks):
        layers += [
            layer(f"{prefix}.{block}.{name}", role, block, alpha * (1 + 0.04 * block / blocks), rng, formats)
            for name, (role, alpha) in ROLES.items()
        ]
    layers.append(layer("lm_head", "lm_head", None, 6.0, rng, formats))
    sources = {form: "torch cast" if form.startswith(("fp", "bf")) else "tailwise codec" for form in formats}
    settings = {"k_frac": 0.1, "load_dtype": "fp32", "directions": 16}
    return PrecisionStudy("examples/pycode-8m", tuple(formats), sources, tuple(layers), settings, (), 12.0,
                          {"tailwise": "0.1"})  # fmt: skip


@pytest.fixture(scope="module")
def study() -> PrecisionStudy:
    """58 layers and one that could not be read; one degenerate tail, one overflow, one name that is markup."""
    made = make(8)
    layers = list(made.layers)
    gone = {"alpha": None, "alpha_sigma": None, "alpha_shift": None}
    layers[3] = with_reading(layers[3], "int2-g128", status="DEGENERATE", **gone)
    layers[5] = with_reading(layers[5], "int2-g128", status="NOT_FINITE", relative_error=None, sqnr_db=None,
                             overflow=7, **gone)  # fmt: skip
    layers[6] = replace(layers[6], name="<script>alert(1)</script>")
    lost = LayerStudy("<img src=x>/../lost", "attn_q", 0, 8, 8, 64, "bf16", status="NOT_FINITE", reason="3 of 64 <NaN>")
    return replace(made, layers=(*layers[:4], lost, *layers[4:]))


@pytest.fixture(scope="module")
def small() -> PrecisionStudy:
    """One block, two formats."""
    return make(1, ("fp32", "int2-g128"))


def with_reading(found: LayerStudy, form: str, **changes) -> LayerStudy:
    return replace(found, readings={**found.readings, form: replace(found.readings[form], **changes)})


def text_of(renderable) -> str:
    out = io.StringIO()
    console(file=out).print(renderable)
    return out.getvalue()


# ---- the documented pictures


def test_exactly_the_documented_files_are_written(small, tmp_path):
    written = write_plots(small, tmp_path, plot_format="svg", max_layers=4)
    found = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert found == sorted(str(path.relative_to(tmp_path)) for path in written)
    roles = sorted({layer.category for layer in small.layers})
    assert [name for name in found if "/" not in name] == [
        "alpha_distribution_by_precision.svg",
        *(f"category_{role}.svg" for role in roles),
        *(f"combined_batch_{number}.svg" for number in (1, 2, 3)),
    ]
    alone = [name for name in found if "/" in name]
    assert len(alone) == len(small.layers) == 9
    assert alone[0] == "individual_layers/layer_001_model_embed_tokens.svg"
    assert alone[-1] == "individual_layers/layer_009_lm_head.svg"


def test_a_second_run_removes_the_pictures_it_does_not_make_and_nothing_else(small, tmp_path):
    kept = [tmp_path / "notes.txt", tmp_path / "category_notes.txt", tmp_path / "individual_layers/mine.png"]
    stale = [tmp_path / "combined_batch_9.png", tmp_path / "category_conv.svg",
             tmp_path / "individual_layers/layer_099_gone.png"]  # fmt: skip
    for path in (*kept, *stale):
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    few = replace(small, layers=small.layers[:2])
    write_plots(few, tmp_path, plot_format="svg")
    assert all(path.exists() for path in kept)
    assert not any(path.exists() for path in stale)


@pytest.mark.parametrize(("form", "start"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<svg")])
def test_each_format_is_written_as_what_it_says(small, tmp_path, form, start):
    one = replace(small, layers=small.layers[:1])
    for path in write_plots(one, tmp_path, plot_format=form):
        assert path.suffix == f".{form}"
        assert path.read_bytes().startswith(start)


def test_zero_layers_a_plot_puts_all_in_one(small):
    assert [len(batch) for batch in batches(small.layers, 0)] == [9]
    assert [len(batch) for batch in batches(small.layers, 5)] == [5, 4]


@pytest.mark.parametrize(("form", "most"), [("bmp", 10), ("png", -1)])
def test_what_cannot_be_drawn_is_said_before_the_work(small, tmp_path, form, most):
    with pytest.raises(UsageError):
        write_plots(small, tmp_path, plot_format=form, max_layers=most)
    assert not list(tmp_path.iterdir())


def test_names_of_files_are_safe_short_and_distinct():
    assert safe_name("a/b\\c:<d>é\n.w-1_2") == "a_b_c__d___.w-1_2"
    long = [safe_name("x" * 300 + end) for end in "ab"]
    assert len(long[0]) == 120
    assert long[0] != long[1]
    assert safe_name("\udc80/..").isascii()


def test_a_reading_without_alpha_is_a_word_in_the_place_of_a_bar(study):
    bars = Bars(StudyView(study=study))
    for index, word in ((3, "degenerate"), (6, "overflow")):
        data = bars.of(study.layers[index])["datasets"]
        assert data["words"] == [{"format": "int2-g128", "zero": 0, "says": word}]
        assert "int2-g128" not in {bar["format"] for bar in data["bars"]}
    lost = bars.of(study.layers[4])
    assert not lost["datasets"]["bars"]
    assert "3 of 64 <NaN>" in lost["title"]["subtitle"][1]


def test_a_row_shows_every_format_and_says_what_is_missing(study):
    spec = ladder(StudyView(study=study), study.layers[3:5], "two")
    steps, words = spec["datasets"]["steps"], spec["datasets"]["words"]
    assert [step["format"] for step in steps] == [form for form in study.formats if form != "int2-g128"]
    assert [word["says"] for word in words] == ["int2-g128: degenerate", "not finite"]
    reading = study.layers[3].readings["int8"]
    step = next(step for step in steps if step["format"] == "int8")
    assert step["low"] == pytest.approx(reading.alpha - reading.alpha_sigma, rel=1e-4)


def test_long_names_lose_their_middle_not_their_end():
    assert middle_cut("model.language_model.layers.41.experts.97.mlp.down_proj", 30).endswith(".97.mlp.down_proj")
    assert middle_cut("short", 30) == "short"


def test_boxes_are_quartiles_with_whiskers_at_the_last_value_within_one_and_a_half_boxes(small):
    values = [1.5, 2.0, 2.5, 3.0, 3.5, 40.0]
    layers = [replace(layer, readings={"fp32": replace(layer.readings["fp32"], alpha=value)})
              for layer, value in zip(small.layers, values, strict=False)]  # fmt: skip
    view = StudyView(study=replace(small, layers=tuple(layers), formats=("fp32",)))
    FIGURES["alpha_distribution_by_precision"].draw(view)
    (box,) = view.datasets["boxes"]
    assert [box[key] for key in ("q25", "median", "q75", "low", "high")] == [2.125, 2.75, 3.375, 1.5, 3.5]


# ---- charts by name


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_chart_can_be_drawn_by_name_in_both_themes(study, name):
    for palette in (LIGHT, DARK):
        spec = plot_study(name, study, palette=palette).to_dict()
        assert "@" not in json.dumps({**spec, "datasets": None})


@pytest.mark.parametrize("name", list(FIGURES))
def test_every_chart_stands_formats_that_change_nothing(name):
    plot_study(name, make(1, ("fp32",)))


def test_unknown_names_are_usage_errors(study, small):
    with pytest.raises(UsageError, match="chart"):
        plot_study("piechart", study)
    with pytest.raises(UsageError, match="format"):
        plot_study("alpha_and_error", study, format_name="int5")
    with pytest.raises(UsageError, match="no layer"):
        plot_study("alpha_and_error", replace(small, layers=()))


def test_the_heat_map_shows_the_layer_that_needs_most_of_a_cell(small):
    layers = [replace(layer, category="mlp_up") for layer in small.layers if layer.block == 0]
    layers[2] = with_reading(layers[2], "int2-g128", relative_error=0.9)
    layers[2] = replace(layers[2], readings={"int2-g128": layers[2].readings["int2-g128"]})
    view = StudyView(study=replace(small, layers=tuple(layers)), bounds=(Bound("relative_error", 0.8),))
    FIGURES["verdict_heat"].draw(view)
    (cell,) = view.datasets["cells"]
    assert (cell["layers"], cell["format"]) == (7, "none of them")


def test_names_beside_points_stand_apart():
    rows = [{"bits": 4.0 + index / 100, "error": 0.1} for index in range(5)]
    nudged(rows, [0.001, 1.0], height=340)
    labels = sorted(math.log(row["label"]) for row in rows)
    apart = 13 * math.log(1000) / 340
    assert all(b - a > apart * 0.99 for a, b in pairwise(labels))


# ---- the page


@pytest.fixture(scope="module")
def page(study) -> str:
    return report(study, bounds=(Bound("relative_error", 0.12),))


def data_of(text: str, name: str):
    kind, body = re.search(
        rf'<script type="application/(json|gzip)" id="{name}">(.*?)</script>', text, re.DOTALL
    ).groups()
    return json.loads(gzip.decompress(base64.b64decode(body)) if kind == "gzip" else body)


def test_the_page_is_one_file_that_loads_nothing_and_ends_its_scripts(page):
    own = page.replace(bundle(), "")
    assert not re.findall(r"<(?:script|link|img|iframe|object)\b[^>]*\b(?:src|href)=[^>]*>", own)
    assert not re.findall(r"@import|url\(|fetch\(|XMLHttpRequest|unsafe-eval", own)
    assert "default-src 'none'" in own
    assert page.startswith("<!doctype html>")
    assert page.endswith("</html>")
    assert page.count("<script") == page.count("</script>") == 6


def test_names_are_text_not_markup(page):
    own = page.replace(bundle(), "")
    assert "<script>alert" not in own
    assert "<img src=x>" not in own
    assert "&lt;img src=x&gt;/../lost" in own
    assert "3 of 64 &lt;NaN&gt;" in own


def test_every_layer_is_in_the_table_measured_or_not(page, study):
    layers = data_of(page, "layers")
    names = [row[layers["columns"].index("name")] for row in layers["rows"]]
    assert sorted(names) == sorted(layer.name for layer in study.layers)
    shown = json.loads(html.unescape(re.search(r'id="layer-table" data-columns="([^"]+)"', page)[1]))
    assert set(shown) <= set(layers["columns"])
    assert {"reason", "format", "bits"} <= set(shown)


def test_every_figure_of_the_page_has_its_spec_and_every_colour_a_theme(page):
    specs, themes = data_of(page, "specs"), data_of(page, "themes")
    assert set(re.findall(r'data-chart="([^"]+)"', page)) == set(specs) == set(FIGURES)
    used = set(re.findall(r'"@([\w.]+)"', json.dumps(specs)))
    assert used <= set(themes["light"])
    assert used <= set(themes["dark"])


def test_the_page_says_measures_sources_and_overflow_in_words(page):
    for measure in MEASURES:
        assert f"<code>{measure}</code>" in page
    assert "7 entries beyond its reach" in page
    assert "torch cast" in page
    assert "relative_error ≤ 0.12" in page


def test_a_study_that_changes_nothing_still_makes_a_page(tmp_path):
    path = write_report(make(1, ("fp32",)), tmp_path / "x.html")
    assert "nothing to predict" in path.read_text()
    with pytest.raises(UsageError, match="suffix"):
        write_report(make(1, ("fp32",)), tmp_path / "x.txt")


# ---- in words


def related(sign: float) -> PrecisionStudy:
    """A study in which the error follows α within every role."""
    made = make(8, ("fp32", "int4-g128"))
    layers = [
        with_reading(layer, "int4-g128", relative_error=0.1 * math.exp(sign * 0.1 * layer.alpha)) for layer in made
    ]
    return replace(made, layers=tuple(layers))


@pytest.mark.parametrize(("sign", "says"), [(1.0, "suffer more from int4-g128"), (-1.0, "suffer less from int4-g128")])
def test_a_relation_within_roles_is_said_with_its_direction(sign, says):
    (text, *_) = words.on_prediction_in_short(StudyView(study=related(sign)))
    assert says in text
    assert "depth does not" in text


def test_no_relation_is_said_too(study):
    (text, *_) = words.on_prediction_in_short(StudyView(study=study, format_name="int4-g128"))
    assert text.startswith("Within roles, α does not predict the relative error of int4-g128 (ρ = ")


def test_few_layers_are_said_to_be_too_few():
    view = StudyView(study=make(1))
    assert words.on_prediction(view) == ["There are too few layers inside blocks to correlate anything."]


def test_verdicts_in_words_count_every_layer(study):
    view = StudyView(study=study, bounds=(Bound("relative_error", 0.5),))
    counts = [int(number) for number in re.findall(r"(\d+) (?:needs?|keeps?) ", words.on_verdicts(view)[0])]
    assert sum(counts) == len(study)
    strict = StudyView(study=make(1, ("int2-g128",)), bounds=(Bound("relative_error", 0.01),))
    assert any("No format studied is enough for" in line for line in words.on_verdicts(strict))


def test_a_summary_counts_by_format_the_most_bits_first(study):
    found = by_format(study)
    assert [item.bits for item in found] == sorted((item.bits for item in found), reverse=True)
    last = found[-1]
    assert (last.format, last.overflow, dict(last.troubles)) == ("int2-g128", 7, {"degenerate": 1, "overflow": 1})
    first = found[0]
    assert first.lossless
    assert math.isinf(first.sqnr_db)


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (math.inf, "∞"), (-0.25, "−0.25"), (1.7e-5, "1.7e−5"), (-1.7e-5, "−1.7e−5"), (0.0, "0")],
)  # fmt: skip
def test_numbers_are_printed_for_people(value, text):
    assert shown(value) == text


def test_minus_zero_is_zero():
    assert words.interval(Prediction("alpha", "overlap", "int4", "pooled", -0.001, -0.3, 0.3, 0.9, 50)) == (
        "0.00 [−0.30, 0.30]"
    )


# ---- the terminal


def test_the_terminal_shows_formats_verdicts_prediction_and_what_was_lost(study):
    text = text_of(terminal(study, (Bound("relative_error", 0.12),)))
    assert all(form in text for form in study.formats)
    assert "Lowest format with relative_error ≤ 0.12" in text
    assert "Does α predict it?" in text
    assert "<img src=x>/../lost: NOT_FINITE: 3 of 64 <NaN>" in text
    assert max(map(len, text.splitlines())) <= 160


def test_the_terminal_stands_a_study_without_layers(small):
    assert "0 matrices" in text_of(terminal(replace(small, layers=())))
    assert "nothing to predict" in text_of(terminal(make(1, ("fp32",))))


def test_a_study_is_shown_without_torch():
    code = "import sys, tailwise.report.precision.page, tailwise.report.precision.precision_terminal; " \
           "print('torch' in sys.modules)"  # fmt: skip
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
