"""llama.cpp's blocks, bit for bit beside the gguf package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tailwise.core.errors import UsageError
from tailwise.number_formats.formats import parse_format

NAMES = ("q4_0", "q4_1", "q5_0", "q5_1", "q8_0")
names = pytest.mark.parametrize("name", NAMES)


def theirs(name, matrix):
    """(bytes of their blocks, their values)."""
    gguf = pytest.importorskip("gguf")
    kind = gguf.GGMLQuantizationType[name.upper()]
    stored = gguf.quants.quantize(matrix.float().numpy(), kind)
    return stored, torch.from_numpy(gguf.quants.dequantize(stored, kind))


@names
def test_values_are_those_of_gguf(name, matrix):
    done = parse_format(name).quantize(matrix)
    _, expected = theirs(name, matrix)
    assert torch.equal(done.values.view(torch.int32), expected.view(torch.int32))  # zeros have their signs too


@names
def test_scales_and_codes_are_those_of_gguf(name, matrix):
    done = parse_format(name).quantize(matrix)
    stored, _ = theirs(name, matrix)
    blocks = stored.reshape(*done.scales.shape, -1)
    assert np.array_equal(done.scales.numpy(), blocks[..., :2].copy().view(np.float16)[..., 0])
    if done.grid.lows is not None:
        assert np.array_equal(done.grid.lows.numpy(), blocks[..., 2:4].copy().view(np.float16)[..., 0])
    if name == "q8_0":
        ours = done.codes.numpy().view(np.uint8).reshape(blocks[..., 2:].shape)
        alive = done.scales.numpy() != 0
        assert np.array_equal(ours[alive], blocks[..., 2:][alive])


@names
def test_a_fixed_grid_changes_its_own_values_no_more(name, mixed):
    done = parse_format(name).quantize(mixed)
    assert torch.equal(done.grid.round(done.values), done.values)


@names
def test_the_grid_is_that_of_quantize(name, mixed):
    chosen = parse_format(name)
    grid, done = chosen.grid(mixed), chosen.quantize(mixed)
    assert torch.equal(grid.steps, done.grid.steps)
    assert (grid.lows is None) == (done.grid.lows is None)


@names
def test_rounding_on_the_grid_is_as_near_as_quantizing(name, matrix):
    done = parse_format(name).quantize(matrix)
    on_grid = done.grid.round(matrix)
    assert float((on_grid - matrix).abs().sum()) <= float((done.values - matrix).abs().sum()) * (1 + 1e-6)


@names
def test_underflow_counts_the_entries_that_became_zero(name, mixed):
    done = parse_format(name).quantize(mixed)
    assert done.underflow == int(((mixed != 0) & (done.values == 0)).sum())
    assert done.overflow == 0


@names
def test_a_row_that_is_no_whole_number_of_blocks(name):
    matrix = torch.randn(3, 40, generator=torch.Generator().manual_seed(0))
    done = parse_format(name).quantize(matrix)
    assert done.values.shape == (3, 40)
    assert torch.equal(done.values[:, :32], parse_format(name).quantize(matrix[:, :32]).values)
    assert done.scales.shape == (3, 2)


def test_bits_per_weight():
    found = {name: parse_format(name).bits_per_weight(4096, 4096) for name in NAMES}
    assert found == {"q4_0": 4.5, "q4_1": 5.0, "q5_0": 5.5, "q5_1": 6.0, "q8_0": 8.5}


def test_by_hand():
    """The largest entry, −8, is the code −8 of a step of one; 7.4 is rounded to 7."""
    row = torch.zeros(1, 32)
    row[0, :3] = torch.tensor([-8.0, 7.4, 2.5])
    assert parse_format("q4_0").quantize(row).values[0, :4].tolist() == [-8.0, 7.0, 3.0, 0.0]


@names
def test_what_float16_scales_cannot_reach_is_an_error(name):
    with pytest.raises(UsageError, match="too large for the float16 scales"):
        parse_format(name).quantize(torch.tensor([[1e9, -1e9, *[0.0] * 30]]))
    with pytest.raises(UsageError, match="NaN"):
        parse_format(name).quantize(torch.tensor([[float("nan"), *[0.0] * 31]]))


@names
def test_suffixes_are_refused(name):
    with pytest.raises(UsageError, match="takes no suffix"):
        parse_format(f"{name}-g64")
