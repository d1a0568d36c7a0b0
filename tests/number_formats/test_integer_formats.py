"""Integers against compressed-tensors and torchao, and their conventions."""

from __future__ import annotations

import pytest
import torch

from tailwise.number_formats.formats import parse_format
from tailwise.number_formats.number_format import Reach

INTS = [
    "int8",
    "int8-tensor",
    "int8-g64",
    "int8-asym-channel",
    "int8-asym-tensor",
    "int4",
    "int4-channel",
    "int4-g32",
    "int4-tensor",
    "int4-asym-g128",
    "int4-asym-g16",
    "int4-asym-tensor",
    "int3",
    "int3-asym-g64",
    "int2",
    "int2-asym-g128",
]


def _arguments(name):
    from compressed_tensors.quantization import QuantizationArgs

    number_format = parse_format(name)
    size = number_format.group_size
    strategy = "group" if size else "tensor" if name.endswith("tensor") else "channel"
    return QuantizationArgs(
        num_bits=int(number_format.element_bits),
        type="int",
        symmetric="asym" not in name,
        strategy=strategy,
        group_size=size,
    )


@pytest.mark.parametrize("name", INTS)
def test_codes_and_values_are_those_of_compressed_tensors(name, matrix):
    forward = pytest.importorskip("compressed_tensors.quantization.lifecycle.forward")
    done = parse_format(name).quantize(matrix)
    scales = done.scales.float()
    zeros = None if done.zeros is None else done.zeros
    theirs = forward.quantize(matrix.float(), scales, zeros, _arguments(name), dtype=torch.int8)
    assert torch.equal(done.codes, theirs)
    back = forward.dequantize(theirs, scales, zeros, _arguments(name), dtype=torch.float32)
    assert torch.equal(done.values, back)


def _ends(name, matrix):
    size = parse_format(name).group_size
    if name.endswith("tensor"):
        return matrix.amin().reshape(1, 1), matrix.amax().reshape(1, 1)
    grouped = matrix.unflatten(1, (-1, size or matrix.shape[1]))
    return grouped.amin(-1), grouped.amax(-1)


@pytest.mark.parametrize("name", [name for name in INTS if "asym" not in name])
def test_symmetric_scales_of_bf16_weights_are_those_of_compressed_tensors(name, make):
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    matrix = make("bf16")
    theirs, _ = helpers.calculate_qparams(*_ends(name, matrix), _arguments(name))
    assert torch.equal(parse_format(name).quantize(matrix).scales, theirs)


@pytest.mark.parametrize("name", [name for name in INTS if "asym" in name])
def test_zero_points_are_those_of_compressed_tensors_up_to_the_rounding_of_the_scale(name, make):
    helpers = pytest.importorskip("compressed_tensors.quantization.utils.helpers")
    matrix = make("normal")
    theirs, zeros = helpers.calculate_qparams(*_ends(name, matrix), _arguments(name))
    done = parse_format(name).quantize(matrix)
    assert torch.equal(done.scales, theirs.to(torch.bfloat16))
    assert (done.zeros.int() - zeros.int()).abs().max() <= 1


@pytest.mark.parametrize("name", INTS)
@pytest.mark.parametrize("kind", ["normal", "bf16", "zeros", "heavy"])
def test_torchao_gives_the_same_but_where_an_entry_lies_midway(name, kind, make):
    ao = pytest.importorskip("torchao.quantization.quant_primitives")
    number_format, matrix = parse_format(name), make(kind).float()
    bits = int(number_format.element_bits)
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    shape = (24, 256) if name.endswith("tensor") else (1, number_format.group_size or 256)
    mapping = ao.MappingType.ASYMMETRIC if "asym" in name else ao.MappingType.SYMMETRIC
    scales, _ = ao.choose_qparams_affine(
        matrix, mapping, shape, torch.int8, low, high, scale_dtype=torch.bfloat16, keepdim=True
    )
    done = number_format.quantize(matrix)
    empty = done.values.unflatten(1, (-1, shape[1])).abs().amax((0, -1) if shape[0] > 1 else -1) == 0
    assert torch.equal(done.scales[~empty.view_as(done.scales)], scales[~empty.view_as(scales)])
    zeros = torch.zeros_like(done.scales) if done.zeros is None else done.zeros
    theirs = ao.quantize_affine(matrix, shape, done.scales.float(), zeros.float(), torch.int8, low, high)
    differ = done.codes != theirs
    steps = done.scales.float().repeat_interleave(256 // done.scales.shape[1], 1).expand(24, 256)
    midway = ((matrix / steps).frac().abs() - 0.5).abs() < 1e-4
    assert not (differ & ~midway).any()


def test_the_whole_range_is_used_and_the_scale_is_half_of_it():
    row = torch.tensor([[-7.5, 7.5, 1.0, 0.49, -0.5, 1.5, 2.5, 0.0]])
    done = parse_format("int4-g8").quantize(row)
    assert done.scales.tolist() == [[1.0]]
    assert done.codes.tolist() == [[-8, 7, 1, 0, 0, 2, 2, 0]]
    assert done.overflow == 0
    assert done.underflow == 2


def test_zero_is_exact_and_the_ends_are_reached_where_asymmetric():
    row = torch.tensor([[-3.0, 12.0, 0.0, 5.2]])
    done = parse_format("int4-asym-g4").quantize(row)
    assert done.zeros.tolist() == [[-5]]
    assert done.values.tolist() == [[-3.0, 12.0, 0.0, 5.0]]
    assert done.codes.tolist() == [[-8, 7, -5, 0]]


@pytest.mark.parametrize("name", ["int4-asym-g4", "int8-asym-tensor"])
def test_a_group_of_one_sign_still_holds_zero(name):
    done = parse_format(name).quantize(torch.tensor([[5.0, 6.0, 7.0, 0.0]]))
    assert done.values[0, 3] == 0
    assert (done.values[0, :3] - torch.tensor([5.0, 6.0, 7.0])).abs().max() < 0.27


def test_a_float16_matrix_has_float16_scales():
    row = torch.tensor([[0.1, -0.3, 0.7, 1.1]])
    assert parse_format("int4-g4").quantize(row.half()).scales.dtype == torch.float16
    assert parse_format("int4-g4").quantize(row).scales.dtype == torch.bfloat16


@pytest.mark.parametrize("name", ["int8-tensor", "int4-asym-tensor", "nvfp4", "fp8_e4m3-tensor"])
def test_blocks_with_the_reach_of_the_whole_are_the_whole(name, make):
    matrix = make("heavy")
    number_format = parse_format(name)
    whole = number_format.quantize(matrix)
    reach = Reach.of(matrix.split(5))
    parts = [number_format.quantize(part, reach) for part in matrix.split(5)]
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert sum(part.underflow for part in parts) == whole.underflow


def test_overflow_counts_what_a_narrower_reach_clips():
    row = torch.tensor([[0.5, 1.0, 1.001, 3.0, -4.0]])
    done = parse_format("int8-tensor").quantize(row, Reach(-1.0, 1.0))
    assert done.overflow == 2


def test_real_weights_survive_packing_by_compressed_tensors(real):
    helpers = pytest.importorskip("compressed_tensors.compressors.pack_quantized.helpers")
    done = parse_format("int4").quantize(real)
    packed = helpers.pack_to_int32(done.codes, 4)
    again = helpers.unpack_from_int32(packed, 4, done.codes.shape)
    values = again.float() * done.scales.float().repeat_interleave(128, 1)
    assert torch.equal(values, done.values)


def test_ends_too_far_apart_for_float32_still_have_a_scale():
    done = parse_format("int4-asym-g4").quantize(torch.tensor([[-3e38, 3e38, 1e38, 0.0]]))
    assert torch.isfinite(done.values).all()
    assert done.values[0, 3] == 0
