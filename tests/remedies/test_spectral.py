"""The penalty on the largest singular values, against autograd through the SVD."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import tailwise as tw
from tailwise.core.errors import UsageError


def decaying(rows, cols, seed=0):
    """A matrix whose singular values are 5, 4, 3, 1, 0.5, …"""
    torch.manual_seed(seed)
    left = torch.linalg.qr(torch.randn(rows, rows))[0]
    right = torch.linalg.qr(torch.randn(cols, cols))[0]
    sigma = torch.tensor([5.0, 4.0, 3.0, *(0.5**i for i in range(min(rows, cols) - 3))])
    return (left[:, : len(sigma)] * sigma) @ right[: len(sigma)]


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("shape", [(12, 20), (20, 12), (9, 9)])
def test_value_and_gradient_are_those_of_the_svd(k, shape):
    weight = nn.Parameter(decaying(*shape))
    exact = nn.Parameter(weight.detach().clone())
    wanted = torch.linalg.svdvals(exact)[:k].square().sum() / 2
    wanted.backward()
    penalty = tw.remedies.spectral_penalty(nn.Module(), k=k, iterations=200, layers={"w": weight})
    found = penalty()
    found.backward()
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(weight.grad, exact.grad, rtol=1e-4, atol=1e-4)


def test_one_iteration_a_call_follows_a_matrix_that_changes():
    weight = nn.Parameter(decaying(30, 20))
    penalty = tw.remedies.spectral_penalty(nn.Module(), layers={"w": weight})
    torch.manual_seed(3)
    for _ in range(30):
        with torch.no_grad():
            weight += 0.01 * torch.randn_like(weight)
        found = penalty()
    assert float(found.detach()) == pytest.approx(
        float(torch.linalg.matrix_norm(weight.detach(), 2)) ** 2 / 2, rel=0.01
    )
    assert penalty.norms()["w"] == pytest.approx(float(torch.linalg.matrix_norm(weight.detach(), 2)), rel=0.01)


def test_descending_it_lowers_the_largest_singular_value_and_leaves_the_others():
    weight = nn.Parameter(decaying(16, 16))
    penalty = tw.remedies.spectral_penalty(nn.Module(), iterations=60, layers={"w": weight})
    optimizer = torch.optim.SGD([weight], lr=0.02)
    for _ in range(5):
        optimizer.zero_grad()
        penalty().backward()
        optimizer.step()
    sigma = torch.linalg.svdvals(weight.detach())
    assert sigma[0] == pytest.approx(5.0 * 0.98**5, rel=1e-3)
    torch.testing.assert_close(sigma[1:3], torch.tensor([4.0, 3.0]), rtol=1e-3, atol=1e-3)


def test_zeros_give_zero_and_a_gradient_of_zeros():
    weight = nn.Parameter(torch.zeros(8, 8))
    penalty = tw.remedies.spectral_penalty(nn.Module(), layers={"w": weight})
    found = penalty()
    found.backward()
    assert float(found.detach()) == 0.0
    assert not weight.grad.any()


def test_weights_that_are_not_finite_do_not_spoil_the_directions():
    weight = nn.Parameter(decaying(8, 8))
    penalty = tw.remedies.spectral_penalty(nn.Module(), layers={"w": weight})
    first = float(penalty().detach())
    good = weight.detach().clone()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    assert torch.isnan(penalty())
    with torch.no_grad():
        weight.copy_(good)
    assert float(penalty().detach()) == pytest.approx(first, rel=1e-4)


def test_bf16_weights_get_a_gradient_in_bf16():
    weight = nn.Parameter(decaying(16, 16).bfloat16())
    with torch.autocast("cpu", torch.bfloat16):
        tw.remedies.spectral_penalty(nn.Module(), iterations=50, layers={"w": weight})().backward()
    assert weight.grad.dtype == torch.bfloat16
    assert float(weight.grad.float().norm()) == pytest.approx(5.0, rel=0.02)


def test_a_state_goes_on_with_the_same_directions():
    weight = nn.Parameter(decaying(16, 16))
    first = tw.remedies.spectral_penalty(nn.Module(), layers={"w": weight})
    for _ in range(5):
        first()
    second = tw.remedies.spectral_penalty(nn.Module(), layers={"w": weight})
    second.load_state_dict(first.state_dict())
    assert float(first().detach()) == float(second().detach())


def test_it_takes_the_linear_layers_of_a_model_and_tied_ones_once():
    net = nn.Sequential(nn.Linear(20, 20, bias=False), nn.LayerNorm(20), nn.Linear(20, 20, bias=False))
    net[2].weight = net[0].weight
    found = tw.remedies.spectral_penalty(net, iterations=100)()
    assert float(found.detach()) == pytest.approx(
        float(torch.linalg.matrix_norm(net[0].weight.detach(), 2)) ** 2 / 2, rel=1e-3
    )


def test_wrong_requests_say_what_to_do():
    with pytest.raises(UsageError, match="no matrix"):
        tw.remedies.spectral_penalty(nn.LayerNorm(4))
    with pytest.raises(UsageError, match="k is 0"):
        tw.remedies.spectral_penalty(nn.Linear(20, 20), k=0)
