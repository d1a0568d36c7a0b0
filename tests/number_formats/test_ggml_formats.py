"""llama.cpp's k-quants and iq4: rounded by ggml, decoded by the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.ggml_library import ggml_library, told_importances

gguf = pytest.importorskip("gguf")
if ggml_library() is None:
    pytest.skip("no library of ggml is installed (pip install 'tailwise[ggml]')", allow_module_level=True)

NAMES = ("q2_k", "q3_k", "q4_k", "q5_k", "q6_k", "iq4_nl", "iq4_xs")
names = pytest.mark.parametrize("name", NAMES)
weighing = pytest.mark.parametrize("name", [*NAMES, "q4_0", "q4_1", "q5_0", "q5_1"])


def drawn(rows=24, cols=512, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator) * 0.05, torch.rand(cols, generator=generator) ** 4 + 0.01


def lost(found, W, importances):
    return float(((found.values - W).square() * importances).sum())


@names
def test_types_and_sizes_are_those_of_gguf(name):
    chosen, kind = parse_format(name), gguf.GGMLQuantizationType[name.upper()]
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    assert (chosen.type_id, chosen.block, chosen.block_bytes) == (int(kind), block, nbytes)
    assert chosen.bits_per_weight(3, 512) == 8 * nbytes / block


@names
def test_values_are_what_gguf_makes_of_the_stored_blocks(name, matrix):
    done = parse_format(name).quantize(matrix)
    theirs = gguf.quants.dequantize(done.scales.numpy(), gguf.GGMLQuantizationType[name.upper()])
    assert np.array_equal(done.values.numpy(), theirs)
    assert torch.equal(done.grid.round(done.values[:, 32:64], 32), done.values[:, 32:64])


@names
def test_errors_fall_with_the_bits(name):
    W, _ = drawn()
    error = float((parse_format(name).quantize(W).values - W).norm() / W.norm())
    assert error < 2.0 ** -(parse_format(name).element_bits - 0.3)


@weighing
def test_columns_that_matter_lose_less(name):
    W, importances = drawn()
    chosen = parse_format(name)
    assert lost(chosen.weighted(W, importances), W, importances) < lost(chosen.quantize(W), W, importances)


@weighing
def test_only_ratios_of_importances_count(name):
    W, importances = drawn()
    chosen = parse_format(name)
    assert torch.equal(chosen.weighted(W, importances).values, chosen.weighted(W, importances * 2.0**20).values)
    assert torch.equal(chosen.weighted(W, importances * 0.0).values, chosen.quantize(W).values)


@weighing
def test_inputs_that_were_always_zero_leave_finite_values(name):
    W, importances = drawn()
    importances[:256] = 0.0
    found = parse_format(name).weighted(W, importances)
    assert torch.isfinite(found.values).all()
    assert float((found.values - W).norm() / W.norm()) < 0.5


@pytest.mark.parametrize("name", ["q4_0", "q4_1", "q5_0", "q5_1"])
def test_weighed_blocks_of_32_lie_on_a_grid_that_packs_to_what_ggml_stored(name):
    from tailwise.compression.packing.gguf_packing import _blocks
    from tailwise.compression.packing.tensor_parts import Parts

    W, importances = drawn()
    found = parse_format(name).weighted(W, importances)
    row_bytes = round(parse_format(name).bits_per_weight(1, 512) * 64)
    kind = gguf.GGMLQuantizationType[name.upper()]
    raw = ggml_library().rounded(W, int(kind), row_bytes, told_importances(importances))
    assert np.array_equal(found.values.numpy(), gguf.quants.dequantize(raw.numpy(), kind))
    parts = Parts(found.codes, found.scales, None, None, found.grid.lows)
    assert torch.equal(_blocks(parts, name), raw)


def test_threads_change_nothing():
    W, importances = drawn(rows=7)
    before = torch.get_num_threads()
    try:
        found = []
        for count in (1, 3):
            torch.set_num_threads(count)
            found.append(parse_format("q4_k").weighted(W, importances).scales)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("name", "cols", "instead"),
    [
        ("q2_k", 576, "iq4_nl"), ("q3_k", 576, "iq4_nl"), ("iq4_xs", 576, "iq4_nl"), ("q4_k", 576, "q5_0"),
        ("q5_k", 576, "q5_1"), ("q6_k", 576, "q8_0"), ("iq4_nl", 576, "iq4_nl"), ("q4_k", 100, "fp16"),
        ("iq4_nl", 100, "fp16"), ("q6_k", 512, "q6_k"),
    ],
)  # fmt: skip
def test_rows_that_blocks_do_not_divide_get_the_type_that_llama_cpp_takes(name, cols, instead):
    W, chosen = drawn(cols=cols)[0], parse_format(name)
    assert chosen.fitting(cols).name == instead
    assert chosen.bits_per_weight(24, cols) == parse_format(instead).bits_per_weight(24, cols)
    assert torch.equal(chosen.quantize(W).values, parse_format(instead).quantize(W).values)


@pytest.mark.parametrize("text", ["Q4_K", "q4_K", " IQ4_XS "])
def test_names_in_any_case(text):
    assert parse_format(text).name == text.strip().lower()


@pytest.mark.parametrize("text", ["Q4_K_M", "q3_k_s", "IQ4_M", "q5_K_l"])
def test_a_mix_is_named_as_one(text):
    with pytest.raises(UsageError, match=rf"{text.upper()} is a mix of types"):
        parse_format(text)


@names
def test_what_no_block_can_hold_is_an_error(name):
    W, _ = drawn()
    for value, says in ((float("nan"), "NaN or infinite"), (1e30, "too large for the float16 scales")):
        wrong = W.clone()
        wrong[3, 5] = value
        with pytest.raises(UsageError, match=says):
            parse_format(name).quantize(wrong)


@names
def test_large_entries_are_held(name):
    W = drawn()[0] * 2.0**20 / 0.3
    W.clamp_(-(2.0**20), 2.0**20)
    assert float((parse_format(name).quantize(W).values - W).norm() / W.norm()) < 0.5


def test_without_a_library_the_remedy_is_told(monkeypatch):
    monkeypatch.setattr("tailwise.number_formats.ggml_library.ggml_library", lambda: None)
    with pytest.raises(UsageError, match="no library of ggml is installed") as told:
        parse_format("q4_k").quantize(drawn()[0])
    assert "tailwise[ggml]" in (told.value.fix or "")
    assert parse_format("q4_k").quantize(drawn(cols=64)[0]).values.shape == (24, 64)  # q5_0 needs none


def test_scales_cannot_be_fixed_ahead():
    with pytest.raises(UsageError, match="rounded in whole blocks"):
        parse_format("q4_k").grid(drawn()[0])
