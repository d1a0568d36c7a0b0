"""Casts and scaled 8-bit floats against torch, ml_dtypes, torchao and compressed-tensors."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tailwise.core.errors import UsageError
from tailwise.number_formats.elements import Float8, MiniFloat
from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import Reach


def _every_kind_of_number():
    """Around every element, every midpoint and every power of two, with both signs, (n,) float32."""
    ends = torch.tensor([2.0**exponent for exponent in range(-30, 17)])
    fractions = torch.arange(0, 64) / 64 + 1
    grid = (ends[:, None] * fractions).flatten()
    near = torch.cat([grid, grid.nextafter(torch.tensor(0.0)), grid.nextafter(torch.tensor(1e9)), torch.zeros(1)])
    return torch.cat([near, -near])


@pytest.mark.parametrize(
    ("element", "theirs"),
    [
        (MiniFloat(2, 1), "float4_e2m1fn"),
        (MiniFloat(2, 3), "float6_e2m3fn"),
        (MiniFloat(3, 2), "float6_e3m2fn"),
        (Float8("float8_e4m3fn"), "float8_e4m3fn"),
        (Float8("float8_e5m2"), "float8_e5m2"),
    ],
)
def test_elements_and_their_codes_are_those_of_ml_dtypes(element, theirs):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    numbers = _every_kind_of_number()
    low, high = element.limits
    assert high == float(ml_dtypes.finfo(theirs).max)
    expected = numbers.clamp(low, high).numpy().astype(theirs)
    rounded = element.round_(numbers.clone())
    assert np.array_equal(rounded.numpy().view(np.int32), expected.astype(np.float32).view(np.int32))
    assert np.array_equal(element.codes(rounded).view(torch.uint8).numpy(), expected.view(np.uint8))


@pytest.mark.parametrize(
    ("element", "step"),
    [
        (MiniFloat(2, 1), 2.0),
        (MiniFloat(2, 3), 0.5),
        (MiniFloat(3, 2), 4.0),
        (Float8("float8_e4m3fn"), 32.0),
        (Float8("float8_e5m2"), 8192.0),
    ],
)
def test_slack_is_half_of_the_last_step(element, step):
    top = element.limits[1]
    assert element.slack == step / 2
    below = torch.tensor([top - step, top - 0.51 * step, top - 0.49 * step])
    assert element.round_(below).tolist() == [top - step, top - step, top]


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16), ("fp32", torch.float32)]
)
def test_casts_are_torchs(name, dtype, make):
    matrix = make("heavy").double()
    done = parse_format(name).quantize(matrix)
    assert torch.equal(done.values, matrix.to(dtype).float())
    assert done.values.dtype == torch.float32
    assert done.codes is None
    assert done.scales is None


def test_fp64_keeps_every_bit(make):
    matrix = make("normal").double() / 3
    done = parse_format("fp64").quantize(matrix)
    assert torch.equal(done.values, matrix)
    assert (done.overflow, done.underflow) == (0, 0)


def test_a_cast_counts_infinities_and_lost_entries():
    row = torch.tensor([[65519.0, 65520.0, -1e9, 2.0**-25, 2.0**-24, 0.0, -1e-20]])
    done = parse_format("fp16").quantize(row)
    assert done.overflow == 2
    assert done.underflow == 2
    assert torch.isinf(done.values).sum() == 2


def test_an_fp8_cast_is_clipped_and_counts_what_lies_half_a_step_beyond():
    row = torch.tensor([[447.0, 464.0, 464.1, -1e6, 1e-9, 0.0, 2.0**-10, 2.0**-9]])
    done = parse_format("fp8_e4m3-cast").quantize(row)
    assert done.values.tolist() == [[448.0, 448.0, 448.0, -448.0, 0.0, 0.0, 0.0, 2.0**-9]]
    assert done.overflow == 2
    assert done.underflow == 2
    wide = parse_format("fp8_e5m2-cast").quantize(torch.tensor([[61439.0, 1e6, -1e6]]))
    assert wide.values.tolist() == [[57344.0, 57344.0, -57344.0]]
    assert wide.overflow == 2


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_types_of_input_are_read_exactly(dtype, make):
    matrix = make("normal").to(dtype)
    for name in ("fp8_e4m3", "fp8_e4m3-cast", "mxfp4", "nvfp4", "nf4"):
        number_format = parse_format(name)
        assert torch.equal(number_format.quantize(matrix).values, number_format.quantize(matrix.float()).values), name


@pytest.mark.parametrize("kind", ["normal", "bf16", "heavy", "scales"])
@pytest.mark.parametrize(("name", "dtype"), [("fp8_e4m3", torch.float8_e4m3fn), ("fp8_e5m2", torch.float8_e5m2)])
@pytest.mark.parametrize("shared", ["", "-tensor"])
def test_scaled_fp8_is_torchaos(name, dtype, shared, kind, make):
    pytest.importorskip("torchao")
    from torchao.quantization import Float8Tensor, PerRow, PerTensor

    matrix = make(kind).float()
    theirs = Float8Tensor.from_hp(matrix, dtype, PerTensor() if shared else PerRow())
    done = parse_format(name + shared).quantize(matrix)
    assert torch.equal(done.scales, theirs.scale.reshape(done.scales.shape))
    assert torch.equal(done.grid.round(matrix), done.values)
    assert torch.equal(done.codes.view(torch.uint8), theirs.qdata.view(torch.uint8))
    assert torch.equal(done.values, theirs.qdata.float() * theirs.scale)
    assert done.overflow == 0


@pytest.mark.parametrize("shared", ["channel", "tensor"])
def test_scaled_e4m3_is_compressed_tensors(shared, matrix):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle import forward

    arguments = quantization.QuantizationArgs(num_bits=8, type="float", symmetric=True, strategy=shared)
    done = parse_format(f"fp8_e4m3-{shared}").quantize(matrix)
    theirs = forward.quantize(matrix.float(), done.scales, None, arguments, dtype=torch.float8_e4m3fn)
    assert torch.equal(done.codes.float(), theirs.float())
    back = forward.dequantize(theirs, done.scales, None, arguments, dtype=torch.float32)
    assert torch.equal(done.values, back)


@pytest.mark.parametrize("name", ["bf16", "fp8_e4m3-cast", "fp8_e4m3", "int8", "int4-asym", "mxfp4", "nvfp4", "nf4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_entries_that_are_not_finite_are_an_error(name, bad):
    matrix = torch.ones(3, 64)
    matrix[1, 2] = bad
    with pytest.raises(UsageError, match="NaN or infinite"):
        parse_format(name).quantize(matrix)


@pytest.mark.parametrize(
    "block",
    [torch.ones(4), torch.ones(0, 4), torch.ones(4, 0), torch.ones(2, 2, 2), torch.ones(2, 2, dtype=torch.int32)],
)
@pytest.mark.parametrize("name", ["bf16", "int4", "fp8_e4m3-cast"])
def test_what_is_no_matrix_of_floats_is_an_error(name, block):
    with pytest.raises(UsageError, match="cannot quantize an array"):
        parse_format(name).quantize(block)


def test_a_plain_cast_has_no_grid():
    with pytest.raises(UsageError, match="bf16 has no scales"):
        parse_format("bf16").grid(torch.ones(2, 2))


def test_the_reach_of_blocks_is_that_of_the_whole():
    matrix = torch.tensor([[-3.0, 1.0], [0.5, 2.0]])
    assert Reach.of(matrix.split(1)) == Reach(-3.0, 2.0)
    assert Reach.of([matrix]).amax == 3.0
    assert Reach.of([]) == Reach(0.0, 0.0)
    assert np.isnan(Reach.of([torch.tensor([[float("nan")]]), matrix]).amax)
    assert np.isnan(Reach.of([matrix, torch.tensor([[float("nan")]]), matrix]).amax)
