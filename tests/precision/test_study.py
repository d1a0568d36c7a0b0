"""The study of a checkpoint: what is read, kept, measured and said."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.audits.precision import loaded
from tailwise.audits.precision import study_files as tables
from tailwise.audits.precision.encoded import EncodedMatrix
from tailwise.audits.precision.study import PrecisionStudy
from tailwise.audits.precision.studying import StudyOptions, study
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.number_formats.formats import parse_format


def _weights(seed: int = 0, rows: int = 96, cols: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * torch.arange(1, cols + 1) ** -0.4


def _model(**more: torch.Tensor) -> dict[str, torch.Tensor]:
    named = {f"model.layers.{i}.mlp.up_proj.weight": _weights(i) for i in range(3)}
    return {**named, **{name.replace("__", "."): tensor for name, tensor in more.items()}}


def test_a_format_is_measured_against_the_weights_as_loaded() -> None:
    weight = _weights()
    found = study({"layers.0.mlp.up_proj.weight": weight}, ("int4-tensor",), use_cache=False)
    step = parse_format("int4-tensor").quantize(weight).values
    reading = found["layers.0.mlp.up_proj"].readings["int4-tensor"]
    relative = float((step - weight).norm() / weight.norm())
    assert reading.relative_error == pytest.approx(relative, rel=1e-5)
    assert reading.sqnr_db == pytest.approx(-20 * math.log10(relative), rel=1e-4)
    assert reading.alpha == pytest.approx(tw.alpha_hill(step), rel=1e-6)
    assert reading.underflow == int(((step == 0) & (weight != 0)).sum())
    assert reading.n_eigs == 64
    assert reading.k == 6


def test_the_overlap_is_that_of_a_full_decomposition() -> None:
    weight = _weights(1)
    found = study({"layers.0.mlp.up_proj.weight": weight}, ("int3-g32",), options=StudyOptions(directions=5))
    other = parse_format("int3-g32").quantize(weight).values
    first, second = (torch.linalg.svd(w.double())[2][:5] for w in (weight, other))
    expected = float((first @ second.T).square().sum()) / 5
    assert found["layers.0.mlp.up_proj"].readings["int3-g32"].overlap == pytest.approx(expected, abs=2e-3)
    assert expected < 0.999


def test_a_cast_that_changes_nothing_is_exact() -> None:
    weight = _weights().to(torch.bfloat16)
    found = study({"layers.0.mlp.up_proj.weight": weight}, ("fp64", "fp32", "bf16"), use_cache=False)
    for reading in found["layers.0.mlp.up_proj"].readings.values():
        assert reading.lossless
        assert (reading.alpha_shift, reading.spectral_distance, reading.overlap) == (0.0, 0.0, 1.0)
        assert reading.sqnr_db is None


def test_fewer_bits_distort_more() -> None:
    found = study(_model(), ("int8", "int4", "int3", "int2"), use_cache=False)
    for layer in found:
        errors = [reading.relative_error for reading in layer.readings.values()]
        assert errors == sorted(errors)
        assert [r.overlap for r in layer.readings.values()] == sorted(
            (r.overlap for r in layer.readings.values()), reverse=True
        )


def test_each_tensor_is_read_once_for_all_formats(tmp_path, monkeypatch) -> None:
    save_file(_model(), tmp_path / "model.safetensors")
    from tailwise.checkpoints.formats.safetensors import SafetensorsCheckpoint

    rows: dict[str, int] = {}
    read = SafetensorsCheckpoint.read_rows

    def counted(self, name, start, stop):
        rows[name] = rows.get(name, 0) + stop - start
        return read(self, name, start, stop)

    monkeypatch.setattr(SafetensorsCheckpoint, "read_rows", counted)
    study(str(tmp_path), ("bf16", "int8", "int4", "nf4"), use_cache=False)
    assert rows == dict.fromkeys(_model(), 96)


def test_the_spectrum_as_loaded_comes_from_an_audits_cache(monkeypatch) -> None:
    tw.audit(_model())
    solved = []
    original = loaded.solve
    monkeypatch.setattr(loaded, "solve", lambda *given, **more: solved.append(1) or original(*given, **more))
    first = study(_model(), ("int4",))
    assert len(solved) == 3  # one a matrix: the format's
    again = study(_model(), ("int4",))
    assert len(solved) == 3
    for one, other in zip(first, again, strict=True):
        assert one.readings["int4"].alpha == other.readings["int4"].alpha
        assert one.readings["int4"].overlap == other.readings["int4"].overlap
        assert other.readings["int4"].seconds == 0


def test_workers_do_not_change_a_number() -> None:
    one, two = (study(_model(), ("int4", "nf4"), workers=count, use_cache=False) for count in (1, 2))
    assert [layer.name for layer in one] == [layer.name for layer in two]
    for first, second in zip(one, two, strict=True):
        for name in ("int4", "nf4"):
            assert first.readings[name].alpha == second.readings[name].alpha
            assert first.readings[name].relative_error == second.readings[name].relative_error


def test_loading_in_a_narrow_type_rounds_first() -> None:
    weight = _weights(3)
    wide = study({"a.weight": weight}, ("bf16",), use_cache=False)
    narrow = study({"a.weight": weight}, ("bf16", "fp32"), options=StudyOptions(load_dtype="bf16"), use_cache=False)
    assert wide["a"].readings["bf16"].relative_error > 0
    assert narrow["a"].readings["bf16"].relative_error == 0
    assert narrow["a"].readings["fp32"].alpha == wide["a"].readings["bf16"].alpha


def test_rows_of_a_conv1d_are_the_input_axis(tmp_path) -> None:
    weight = _weights(4, 64, 96).contiguous()  # GPT-2 stores in × out
    save_file({"h.0.mlp.c_fc.weight": weight}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    layer = next(iter(study(str(tmp_path), ("int4-channel",), use_cache=False)))
    plain = study({"layers.0.mlp.up_proj.weight": weight.T.contiguous()}, ("int4-channel",), use_cache=False)
    assert (layer.out_features, layer.in_features) == (96, 64)
    expected = plain["layers.0.mlp.up_proj"].readings["int4-channel"].relative_error
    assert layer.readings["int4-channel"].relative_error == pytest.approx(expected, rel=1e-6)


def test_what_overflows_is_a_reading_with_a_status() -> None:
    weight = _weights(5) * 1e6
    reading = study({"a.weight": weight}, ("fp16",), use_cache=False)["a"].readings["fp16"]
    assert reading.status == "NOT_FINITE"
    assert "the format cannot hold them" in reading.reason
    assert reading.overflow > 0
    assert reading.alpha is None


def test_one_bad_matrix_is_a_layer_with_a_status() -> None:
    bad = _weights(6)
    bad[3, 4] = float("nan")
    found = study(_model(model__layers__9__mlp__up_proj__weight=bad), ("int4",), use_cache=False)
    assert found["model.layers.9.mlp.up_proj"].status == "NOT_FINITE"
    assert not found["model.layers.9.mlp.up_proj"].measured
    assert len(found) == 3


@pytest.mark.filterwarnings("error")
def test_a_matrix_with_too_few_eigenvalues_is_listed_and_not_studied() -> None:
    found = study(_model(head__weight=torch.randn(4, 64)), ("int4",), use_cache=False)
    small = found["head"]
    assert (small.status, small.measured, small.numel) == ("TOO_SMALL", False, 256)
    assert len(found) == 3
    rows = {row["layer_name"]: row for row in tables.results(found)}
    assert rows["head"]["method_int4"] == "TOO_SMALL"
    assert rows["head"]["alpha_int4"] is None


def test_a_degenerate_tail_has_a_status_and_no_alpha() -> None:
    found = study({"a.weight": torch.eye(64), "b.weight": torch.zeros(64, 64)}, ("bf16", "int4"), use_cache=False)
    for name in ("a", "b"):
        layer = found[name]
        assert layer.status == "DEGENERATE"
        assert layer.alpha is None
        assert layer.readings["bf16"].status == "DEGENERATE"
        assert layer.readings["bf16"].alpha is None


def test_metrics_are_computed_in_each_format_where_asked_for() -> None:
    found = study(_model(), ("bf16", "int2"), metrics=("stable_rank", "alpha"), use_cache=False)
    layer = next(iter(found))
    assert set(layer.readings["int2"].metrics) == {"stable_rank", "alpha"}
    assert layer.readings["int2"].metrics["stable_rank"] == pytest.approx(
        layer.stable_rank * (1 + layer.readings["int2"].stable_rank_change)
    )


@pytest.mark.parametrize(("given", "message"), [
    ({"formats": ("int5",)}, "int5"), ({"formats": ()}, "no format"), ({"metrics": "num_traps"}, "permuted"),
    ({"estimator": "farms"}, "windows"), ({"k_frac": 0.0}, "k_frac"), ({"colour": 1}, "colour"),
])  # fmt: skip
def test_a_wrong_setting_is_one_message(given, message) -> None:
    with pytest.raises(UsageError, match=message):
        study(_model(), **given)


@pytest.mark.parametrize("given", [{"layers": "nothing_like_this"}, {"load_dtype": "int8"}, {"directions": 0},
                                   {"layers": "("}, {"roles": ("mlp",)}])  # fmt: skip
def test_wrong_options_are_one_message(given) -> None:
    with pytest.raises(UsageError):
        study(_model(), options=StudyOptions(**given))


def test_a_study_is_read_back_as_it_was_written(tmp_path) -> None:
    bad = torch.full((64, 64), float("inf"))
    found = study(_model(bad__weight=bad), ("bf16", "int4"), metrics="stable_rank", use_cache=False)
    path = found.save(tmp_path / "study.json")
    assert PrecisionStudy.load(path) == found


@pytest.mark.parametrize("text", ["", "{}", '{"kind": "audit"}', "[1]", '{"kind": "precision study", "version": 99}'])
def test_another_file_is_not_a_study(tmp_path, text) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UnreadableError, match="precision study"):
        PrecisionStudy.load(tmp_path / "x.json")


def test_pooled_slices_of_a_convolution_are_one_layer() -> None:
    kernel = torch.randn(32, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    found = study({"conv1.weight": kernel}, ("int4", "bf16"), conv="slices", use_cache=False)
    layer = next(iter(found))
    assert layer.numel == kernel.numel() // (9 if len(found) == 9 else 1)
    assert np.isfinite(layer.readings["int4"].relative_error)


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e22, 3e36])
def test_errors_do_not_depend_on_the_scale_of_the_weights(scale: float) -> None:
    weight = _weights()
    plain, scaled = (study({"a.weight": w}, ("nf4",), use_cache=False)["a"] for w in (weight, weight * scale))
    assert scaled.readings["nf4"].relative_error == pytest.approx(plain.readings["nf4"].relative_error, rel=1e-3)


def test_errors_of_a_large_matrix_are_summed_exactly() -> None:
    weight = torch.randn(1024, 2048, generator=torch.Generator().manual_seed(3))
    matrix = EncodedMatrix(weight, parse_format("int2"), None)
    found = matrix.encode()
    values = parse_format("int2").quantize(weight).values.double()
    assert found.error == pytest.approx(float((values - weight.double()).square().sum()), rel=3e-6)
    assert found.norm == pytest.approx(float(weight.double().square().sum()), rel=3e-6)


def test_a_model_without_a_matrix_says_so(tmp_path) -> None:
    save_file({"model.norm.weight": torch.ones(64)}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"no weight matrix(.|\n)*model\.norm"):
        study(str(tmp_path))


def test_weights_that_overflow_as_they_are_loaded_name_the_type() -> None:
    options = StudyOptions(load_dtype="fp16")
    found = study({"a.weight": _weights() * 1e6, "b.weight": _weights()}, ("fp32",), options=options, use_cache=False)
    assert found["a"].status == "NOT_FINITE"
    assert "fp16 cannot hold these weights" in found["a"].reason
    assert found["b"].measured


def _adapter(folder) -> str:
    factors = {name: torch.randn(*shape, generator=torch.Generator().manual_seed(8))
               for name, shape in (("A", (8, 96)), ("B", (96, 8)))}  # fmt: skip
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    save_file({f"{stem}.lora_{name}.weight": f for name, f in factors.items()}, folder / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return str(folder)


def test_an_adapters_exact_zeros_are_those_of_an_audit(tmp_path) -> None:
    spectra = loaded.LoadedMatrix.encoded
    rows = []

    def noted(self, number_format):
        rows.append(self.spectrum)
        return spectra(self, number_format)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loaded.LoadedMatrix, "encoded", noted)
        study(_adapter(tmp_path), ("fp32",), use_cache=False)
    assert rows[0].solver == "factors-float64"
    assert int((rows[0].eigenvalues > 0).sum()) == 8


@pytest.mark.parametrize(("part", "shape"), [("gate_up_proj", (2, 64, 192)), ("down_proj", (2, 96, 64))])
def test_stacked_experts_that_are_stored_in_by_out_are_turned(tmp_path, part, shape) -> None:
    stack = torch.randn(*shape, generator=torch.Generator().manual_seed(9))
    save_file({f"model.layers.0.mlp.experts.{part}": stack}, tmp_path / "model.safetensors")
    config = {"model_type": "gpt_oss", "hidden_size": 64, "intermediate_size": 96, "num_local_experts": 2}
    (tmp_path / "config.json").write_text(json.dumps(config))
    layers = list(study(str(tmp_path), ("int4-channel",), use_cache=False))
    expected = (64, 96) if part == "down_proj" else (96, 64)
    assert {(layer.out_features, layer.in_features) for layer in layers} == {expected}


def test_one_format_that_fails_costs_no_other_and_the_layer_counts_as_failed(monkeypatch) -> None:
    from tailwise.number_formats.scaled import ScaledFormat

    quantize = ScaledFormat.quantize

    def failing(self, block, reach=None):
        if self.name == "int4":
            raise RuntimeError("a fault of the format")
        return quantize(self, block, reach)

    monkeypatch.setattr(ScaledFormat, "quantize", failing)
    found = study({"w": torch.randn(96, 80, generator=torch.Generator().manual_seed(0))}, ["int4", "int8", "bf16"])
    (layer,) = found
    assert layer.readings["int4"].status == "FAILED"
    assert "a fault of the format" in layer.readings["int4"].reason
    assert layer.readings["int8"].status == layer.readings["bf16"].status == "OK"
    assert found.failed == ("w",)


def test_groups_that_do_not_divide_a_large_matrix_are_studied() -> None:
    names = ["int4", "nf4", "mxfp4", "mxfp8", "nvfp4", "int8-g128"]
    found = study({"w": torch.randn(576, 584, generator=torch.Generator().manual_seed(0))}, names)
    assert found.failed == ()
    assert {name: reading.status for name, reading in found["w"].readings.items()} == dict.fromkeys(names, "OK")


def test_equal_values_are_equal_in_coarse_formats() -> None:
    W = torch.linalg.qr(torch.randn(128, 128, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
    found = study({"w": W}, ["fp32", "bf16", "fp8_e4m3"])
    assert {reading.status for reading in found["w"].readings.values()} == {"DEGENERATE"}
