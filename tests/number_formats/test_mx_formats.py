"""Microscaling and NVFP4 against torchao and compressed-tensors."""

from __future__ import annotations

import pytest
import torch

from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import Reach

MX = ["mxfp8", "mxfp6", "mxfp6-e3m2", "mxfp4"]


def _torchao_type(name):
    return {"mxfp8": torch.float8_e4m3fn, "mxfp6": "fp6_e2m3", "mxfp6-e3m2": "fp6_e3m2"}.get(
        name, torch.float4_e2m1fn_x2
    )


def _pairs(codes):
    return codes[:, ::2] | codes[:, 1::2] << 4


@pytest.mark.parametrize("name", MX)
@pytest.mark.parametrize("kind", ["normal", "bf16", "heavy", "zeros", "ties", "scales"])
def test_mx_codes_scales_and_values_are_torchaos(name, kind, make):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    matrix = make(kind)
    scales, codes = mx.to_mx(matrix, _torchao_type(name), 32)
    done = parse_format(name).quantize(matrix)
    assert torch.equal(done.scales, scales.view(torch.uint8))
    ours = done.codes
    assert torch.equal((_pairs(ours) if name == "mxfp4" else ours).view(torch.uint8), codes.view(torch.uint8))
    assert torch.equal(done.values, mx.to_dtype(codes, scales, _torchao_type(name), 32, torch.float32))


@pytest.mark.parametrize("name", ["mxfp8", "mxfp6", "mxfp4"])
def test_mx_codes_at_these_scales_are_compressed_tensors(name, matrix):
    quantization = pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle import forward

    number_format = parse_format(name)
    arguments = quantization.QuantizationArgs(
        num_bits=int(number_format.element_bits), type="float", strategy="group", group_size=32, scale_dtype=torch.uint8
    )
    done = number_format.quantize(matrix)
    scales = torch.exp2(done.scales.float() - 127)
    theirs = forward.quantize(matrix.float(), scales, None, arguments)
    assert torch.equal(done.values, forward.dequantize(theirs, scales, None, arguments, dtype=torch.float32))


def test_the_mx_scale_is_the_floor_of_the_spec():
    row = torch.zeros(1, 32)
    row[0, :5] = torch.tensor([7.9, 7.0, 6.1, 5.1, 1.0])
    done = parse_format("mxfp4").quantize(row)
    assert done.scales.item() == 127
    assert done.values[0, :5].tolist() == [6.0, 6.0, 6.0, 6.0, 1.0]
    assert done.overflow == 1  # 7.9: the others are within half a step of 6


def test_a_block_of_zeros_has_the_smallest_scale():
    done = parse_format("mxfp4").quantize(torch.zeros(2, 64))
    assert done.scales.tolist() == [[0, 0], [0, 0]]
    assert not done.values.any()


def test_numbers_near_the_end_of_float32_keep_their_scale():
    row = torch.full((1, 32), 3e38)
    row[0, 1] = -1e38
    done = parse_format("mxfp4").quantize(row)
    assert done.values[0, :2].tolist() == [6 * 2.0**125, -2 * 2.0**125]
    tiny = parse_format("mxfp4").quantize(torch.full((1, 32), 2.0**-126))
    assert torch.equal(tiny.values, torch.full((1, 32), 2.0**-126))


def _compressed_nvfp4(matrix):
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.utils import helpers

    arguments = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
    )
    whole = helpers.generate_gparam(matrix.min(), matrix.max())
    grouped = matrix.unflatten(1, (-1, 16))
    scales, _ = helpers.calculate_qparams(grouped.amin(-1), grouped.amax(-1), arguments, whole)
    return arguments, whole, scales


@pytest.mark.parametrize("kind", ["normal", "heavy", "zeros", "ties", "scales"])
def test_nvfp4_is_compressed_tensors(kind, make):
    pytest.importorskip("compressed_tensors.quantization")
    from compressed_tensors.quantization.lifecycle import forward

    matrix = make(kind).float()
    arguments, whole, scales = _compressed_nvfp4(matrix)
    done = parse_format("nvfp4").quantize(matrix)
    assert done.tensor_scale == whole.item()
    assert torch.equal(done.scales.float(), scales)
    theirs = forward.quantize(matrix, scales, None, arguments, global_scale=whole)
    back = forward.dequantize(theirs, scales, None, arguments, dtype=torch.float32, global_scale=whole)
    assert torch.equal(done.values, back)


@pytest.mark.parametrize("kind", ["normal", "bf16"])
def test_nvfp4_is_torchaos_but_where_an_entry_lies_midway(kind, make):
    pytest.importorskip("torchao")
    from torchao.prototype.mx_formats.nvfp4_tensor import NVFP4Tensor, per_tensor_amax_to_scale

    matrix = make(kind).float()
    theirs = NVFP4Tensor.to_nvfp4(matrix, per_tensor_scale=per_tensor_amax_to_scale(matrix.abs().amax()))
    done = parse_format("nvfp4").quantize(matrix)
    alike = done.scales.float() == theirs.scale.float()
    exact = matrix.double().unflatten(1, (-1, 16)).abs().amax(-1) / 6 * done.tensor_scale
    between = (done.scales.double() + theirs.scale.double()) / 2  # two neighbours, where a scale lies midway
    assert torch.allclose(between[~alike], exact[~alike], rtol=1e-6)
    assert done.tensor_scale == pytest.approx(1 / theirs.per_tensor_scale.item(), rel=1e-6)
    steps = done.grid.steps.repeat_interleave(16, 1)
    quarters = (matrix / steps).abs() * 4
    midway = (quarters - quarters.round()).abs() < 1e-4  # 0.25, 0.75, 1.25, 1.75, 2.5, 3.5 and 5 are among these
    differ = (done.values - theirs.dequantize()).abs() > 1e-5 * steps
    alike = alike.repeat_interleave(16, 1)
    assert alike.float().mean() > 0.99
    assert not (differ & ~midway & alike).any()
    same = _pairs(done.codes) == theirs.qdata.view(torch.uint8)
    assert (same | (differ | ~alike)[:, ::2] | (differ | ~alike)[:, 1::2]).all()


def test_nvfp4_blocks_share_the_scale_of_the_tensor(make):
    matrix = make("heavy")
    reach = Reach.of([matrix])
    assert (
        parse_format("nvfp4").quantize(matrix[:3], reach).tensor_scale
        == parse_format("nvfp4").quantize(matrix).tensor_scale
    )


def test_nvfp4_of_zeros_is_zeros():
    done = parse_format("nvfp4").quantize(torch.zeros(2, 32))
    assert not done.values.any()
    assert done.tensor_scale == 1.0
    assert done.scales.float().unique().tolist() == [0.125]


@pytest.mark.parametrize("name", MX)
def test_real_weights_are_torchaos(name, real):
    mx = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    scales, codes = mx.to_mx(real, _torchao_type(name), 32)
    theirs = mx.to_dtype(codes, scales, _torchao_type(name), 32, torch.float32)
    assert torch.equal(parse_format(name).quantize(real).values, theirs)
