"""What holds for any matrix."""

from __future__ import annotations

import pytest
import torch

from tailwise.number_formats.formats import FORMATS, parse_format
from tailwise.number_formats.number_format import Reach

SCALED = [
    "fp8_e4m3",
    "fp8_e4m3-tensor",
    "fp8_e5m2",
    "int8",
    "int8-tensor",
    "int8-asym-channel",
    "int4",
    "int4-g32",
    "int4-asym-g128",
    "int4-asym-tensor",
    "int3",
    "int2",
    "mxfp8",
    "mxfp6",
    "mxfp6-e3m2",
    "mxfp4",
    "nvfp4",
    "nf4",
]
CASTS = ["fp64", "fp32", "fp16", "bf16", "fp8_e4m3-cast", "fp8_e5m2-cast"]


@pytest.mark.parametrize("name", [*CASTS, *SCALED])
def test_zero_stays_zero_and_nothing_changes_sign(name, mixed):
    values = parse_format(name).quantize(mixed).values.to(mixed.dtype)
    assert not values[mixed == 0].any()
    assert (values * mixed >= 0).all()


@pytest.mark.parametrize("name", [*CASTS, *SCALED])
def test_underflow_counts_the_entries_that_became_zero(name, mixed):
    done = parse_format(name).quantize(mixed)
    assert done.underflow == int(((mixed != 0) & (done.values == 0)).sum())


@pytest.mark.parametrize("name", [*CASTS, "fp8_e4m3", "fp8_e5m2", "mxfp8", "mxfp6", "mxfp6-e3m2", "mxfp4", "nf4"])
def test_what_is_on_the_grid_stays(name, mixed):
    number_format = parse_format(name)
    once = number_format.quantize(mixed).values
    twice = number_format.quantize(once)
    if name in ("fp8_e4m3", "fp8_e5m2"):  # amax / 448 · 448 may differ by the last bit of float32
        assert torch.allclose(twice.values, once, rtol=1e-6, atol=0)
    else:
        assert torch.equal(twice.values, once)
    assert (twice.overflow, twice.underflow) == (0, 0)


@pytest.mark.parametrize("name", SCALED)
def test_a_fixed_grid_changes_its_own_values_no_more(name, mixed):
    done = parse_format(name).quantize(mixed)
    assert torch.equal(done.grid.round(done.values), done.values)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("power", [-9, 5])
def test_a_power_of_two_only_moves_the_scale(name, power, mixed):
    number_format = parse_format(name)
    one, other = number_format.quantize(mixed), number_format.quantize(mixed.float() * 2.0**power)
    assert torch.equal(other.values, one.values * 2.0**power)
    assert (one.overflow, one.underflow) == (other.overflow, other.underflow)


@pytest.mark.parametrize("name", [*CASTS, *SCALED])
def test_order_is_kept_within_a_group(name):
    row = torch.linspace(-1, 1, 16).reshape(1, -1)
    values = parse_format(name).quantize(row).values
    assert (values.diff() >= 0).all()


@pytest.mark.parametrize("name", [n for n in SCALED if n.startswith("int")])
def test_an_integer_errs_by_half_a_step_at_most(name, mixed):
    done = parse_format(name).quantize(mixed)
    steps = done.scales.float().repeat_interleave(256 // done.scales.shape[1], 1)
    room = 0.5 + (2 ** parse_format(name).element_bits) * 2.0**-8  # a scale has 8 significant bits
    assert ((done.values - mixed.float()).abs() <= room * steps).all()


@pytest.mark.parametrize(
    ("name", "relative"),
    [("fp16", 2.0**-11), ("bf16", 2.0**-8), ("fp8_e4m3-cast", 2.0**-4), ("fp8_e5m2-cast", 2.0**-3)],
)
def test_a_float_errs_by_half_a_unit_in_the_last_place(name, relative):
    row = torch.logspace(-1.5, 2.5, 999).reshape(1, -1)
    values = parse_format(name).quantize(row).values
    assert ((values - row).abs() <= relative * row * (1 + 1e-6)).all()


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("cols", [1, 15, 33, 129, 200])
def test_a_shorter_last_group_is_as_if_it_stood_alone(name, cols, make):
    number_format, matrix = parse_format(name), make("heavy")[:, :cols].contiguous()
    done = number_format.quantize(matrix)
    assert done.values.shape == matrix.shape
    assert done.codes.shape == matrix.shape
    size = number_format.group_size
    if size and name != "nvfp4" and cols > size:
        last = number_format.quantize(matrix[:, cols // size * size :])
        assert torch.equal(done.values[:, cols // size * size :], last.values)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("shape", [(576, 576), (3, 90001), (261, 1009)])
def test_a_shorter_last_group_is_so_in_a_matrix_larger_than_a_chunk(name, shape):
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(7))
    number_format = parse_format(name)
    whole, reach = number_format.quantize(matrix), Reach.of([matrix])
    by_rows = [number_format.quantize(matrix[row : row + 1], reach) for row in range(len(matrix))]
    assert torch.equal(whole.values, torch.cat([row.values for row in by_rows]))
    assert whole.underflow == sum(row.underflow for row in by_rows)
    assert torch.equal(number_format.grid(matrix).round(matrix), whole.values)


@pytest.mark.parametrize("name", SCALED)
def test_columns_rounded_one_by_one_are_the_whole(name, make):
    matrix = make("heavy")[:, :200].contiguous()
    number_format = parse_format(name)
    whole, grid = number_format.quantize(matrix), number_format.grid(matrix)
    assert torch.equal(grid.scales.view(torch.uint8), whole.scales.view(torch.uint8))
    one_by_one = torch.cat([grid.round(matrix[:, j : j + 1], j) for j in range(200)], 1)
    assert torch.equal(one_by_one, whole.values)
    assert torch.equal(grid.round(matrix[:, 30:170], 30), whole.values[:, 30:170])
    assert torch.equal(grid.codes(whole.values[:, 30:170], 30).float(), whole.codes[:, 30:170].float())


@pytest.mark.parametrize("name", [*CASTS, *SCALED])
def test_a_matrix_larger_than_a_chunk_is_the_sum_of_its_rows(name):
    matrix = torch.randn(300, 2048, generator=torch.Generator().manual_seed(1))
    number_format = parse_format(name)
    whole = number_format.quantize(matrix)
    if "tensor" in name or name == "nvfp4":
        matrix[0, 0], matrix[-1, -1] = 9.0, -8.0  # the same reach in every part
        whole = number_format.quantize(matrix)
        from tailwise.number_formats.number_format import Reach

        parts = [number_format.quantize(part, Reach.of([matrix])) for part in matrix.split(77)]
    else:
        parts = [number_format.quantize(part) for part in matrix.split(77)]
    assert torch.equal(torch.cat([part.values for part in parts]), whole.values)
    assert sum(part.overflow for part in parts) == whole.overflow


@pytest.mark.parametrize("name", [*CASTS, *SCALED])
def test_the_input_is_left_as_it_was(name, make):
    matrix = make("normal")
    before = matrix.clone()
    parse_format(name).quantize(matrix)
    assert torch.equal(matrix, before)


@pytest.mark.parametrize("name", SCALED)
def test_rows_that_are_not_contiguous_round_alike(name, make):
    matrix = make("normal")
    turned = matrix.t().contiguous().t()
    number_format = parse_format(name)
    assert torch.equal(number_format.quantize(turned).values, number_format.quantize(matrix).values)
    assert torch.equal(number_format.grid(matrix).round(turned), number_format.quantize(matrix).values)


def test_fewer_bits_err_more(real):
    def error(name):
        return float((parse_format(name).quantize(real).values - real.float()).norm())

    for chain in (["fp32", "bf16", "int8", "int4", "int3", "int2"], ["mxfp8", "mxfp4"], ["mxfp6", "nvfp4", "mxfp4"]):
        errors = [error(name) for name in chain]
        assert errors == sorted(errors), chain
        assert errors[-1] > errors[0]


@pytest.mark.parametrize("name", list(FORMATS))
def test_every_format_takes_real_weights(name, real):
    done = parse_format(name).quantize(real)
    relative = float((done.values - real).norm() / real.float().norm())
    assert relative < 2.0 ** (1.5 - parse_format(name).element_bits / 2)
    assert done.values.shape == real.shape
