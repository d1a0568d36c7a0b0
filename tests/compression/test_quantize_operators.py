"""Rounding one matrix: to nearest, and GPTQ."""

from __future__ import annotations

import pytest
import torch

from tailwise.compression.operators.operator import Target
from tailwise.compression.operators.registered import OPERATORS
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.models.activations import Activations
from tailwise.number_formats.formats import parse_format

FORMATS = ("int2", "int3-g32", "int4-asym-g64", "int8", "int8-tensor", "int4-g256", "mxfp4", "mxfp8", "nvfp4", "nf4",
           "fp8_e4m3", "fp8_e5m2-cast", "bf16")  # fmt: skip
formats = pytest.mark.parametrize("name", FORMATS)
with_blocks = pytest.mark.parametrize("name", [*FORMATS, "q4_0", "q5_1", "q8_0"])
OUT, IN = 24, 256


def weights(seed: int = 0) -> torch.Tensor:
    return torch.randn(OUT, IN, generator=torch.Generator().manual_seed(seed)) * 0.1


def hessian(correlated: bool = True) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    X = torch.randn(2 * IN, IN, generator=generator)
    if correlated:
        X = X @ (0.3 * torch.randn(IN, IN, generator=generator) + 0.5 * torch.eye(IN))
    return X.T @ X


def lost(rounded: torch.Tensor, W: torch.Tensor, H: torch.Tensor) -> float:
    """tr(D H Dᵀ), D = Ŵ − W: what the layer's outputs lose."""
    D = rounded - W
    return float(torch.trace(D @ H @ D.T))


def gptq(W, name, H, act_order=False):
    return OPERATORS["gptq"](W, Target(parse_format(name), act_order), Activations(hessian=H))


@with_blocks
def test_to_nearest_is_the_number_format_itself(name):
    chosen, W = parse_format(name), weights()
    found, expected = OPERATORS["rtn"](W, Target(chosen)), chosen.quantize(W)
    assert torch.equal(found.weight, expected.values)
    assert (found.grid is None) == (expected.grid is None)
    assert found.grid is None or torch.equal(found.grid.steps, expected.grid.steps)


@with_blocks
@pytest.mark.parametrize("act_order", [False, True])
def test_on_correlated_inputs_gptq_loses_less_than_to_nearest(name, act_order):
    W, H = weights(), hessian()
    nearest = parse_format(name).quantize(W).values
    assert lost(gptq(W, name, H, act_order).weight, W, H) < lost(nearest, W, H)


@with_blocks
@pytest.mark.parametrize("act_order", [False, True])
def test_what_gptq_leaves_lies_on_the_scales_that_it_gives(name, act_order):
    found = gptq(weights(), name, hessian(), act_order)
    if found.grid is None:
        assert torch.equal(parse_format(name).quantize(found.weight).values, found.weight)
        return
    assert torch.equal(found.grid.round(found.weight), found.weight)
    assert found.grid.steps.shape == parse_format(name).quantize(weights()).grid.steps.shape


@formats
def test_where_inputs_do_not_correlate_gptq_is_to_nearest(name):
    W = weights()
    assert torch.equal(gptq(W, name, torch.eye(IN)).weight, parse_format(name).quantize(W).values)


def test_a_block_that_ends_inside_the_matrix_changes_nothing(monkeypatch):
    from tailwise.compression.operators import gptq as module

    whole = gptq(weights(), "int4-g32", hessian()).weight
    monkeypatch.setattr(module, "BLOCK", 64)
    assert torch.allclose(gptq(weights(), "int4-g32", hessian()).weight, whole, atol=1e-6)


def test_one_column_by_hand():
    """H⁻¹ = UᵀU; the second weight takes up the first one's error times U₀₁/U₀₀."""
    H = torch.tensor([[2.0, 1.0], [1.0, 2.0]])
    damped = H + 0.01 * 2.0 * torch.eye(2)
    U = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    W = torch.tensor([[1.3, 0.4]])
    found = gptq(W, "fp8_e5m2-cast", H).weight  # two bits of fraction: 1.25 and 1.5 are neighbours
    assert float(found[0, 0]) == 1.25
    second = 0.4 - (1.3 - 1.25) / float(U[0, 0]) * float(U[0, 1])
    assert float(found[0, 1]) == float(torch.tensor(second).to(torch.float8_e5m2))


def test_inputs_that_were_always_zero_lose_their_weights():
    H = hessian()
    H[7] = H[:, 7] = 0.0
    assert bool((gptq(weights(), "int4-g32", H).weight[:, 7] == 0).all())


def test_the_matrix_is_left_as_it_is_and_scales_follow_its_dtype():
    W = weights().half()
    before = W.clone()
    found = gptq(W, "int4-g32", hessian())
    assert torch.equal(W, before)
    assert found.grid.scales.dtype == torch.float16


def test_one_reach_serves_all_groups_of_a_format_with_a_scale_of_the_tensor():
    W = weights()
    assert gptq(W, "nvfp4", hessian()).grid.tensor_scale == parse_format("nvfp4").quantize(W).grid.tensor_scale


def test_what_an_operator_lacks_is_said():
    with pytest.raises(UsageError, match="needs the hessian"):
        OPERATORS["gptq"](weights(), Target(parse_format("int4")))
    with pytest.raises(UsageError, match="works on a matrix"):
        OPERATORS["rtn"](torch.zeros(2, 3, 4), Target(parse_format("int4")))
    with pytest.raises(UnreadableError, match="not finite"):
        gptq(weights(), "int4", torch.full((IN, IN), float("nan")))
