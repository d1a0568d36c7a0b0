"""AdaGC, against the paper's algorithm by hand, and what must hold for any gradient."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import tailwise as tw
from tailwise.core.errors import UsageError


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Parameter(torch.zeros(3))
        self.b = nn.Parameter(torch.zeros(4))


def put(model, a, b):
    """Gradients of norm a and b."""
    model.a.grad = torch.tensor([a, 0.0, 0.0])
    model.b.grad = torch.tensor([0.0, b, 0.0, 0.0])


def test_the_warm_up_clips_all_together_and_keeps_the_least_norms():
    model = Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=2)
    put(model, 3.0, 4.0)
    assert clip() == pytest.approx(5.0)
    assert model.a.grad.norm() == pytest.approx(0.6)
    assert model.b.grad.norm() == pytest.approx(0.8)
    put(model, 0.3, 0.9)  # norm 0.949: not clipped
    clip()
    assert clip.averages == pytest.approx({"a": 0.3, "b": 0.8})


def test_after_the_warm_up_each_tensor_is_clipped_against_its_own_average():
    model = Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=1)
    put(model, 0.6, 0.8)
    clip()
    put(model, 0.5, 8.0)
    clip()
    # a: 0.5 ≤ 1.05·0.6, untouched; γ = 0.98·0.6 + 0.02·0.5. b: clipped to 1.05·0.8 = 0.84; γ = 0.98·0.8 + 0.02·0.84.
    assert model.a.grad.norm() == pytest.approx(0.5)
    assert model.b.grad.norm() == pytest.approx(0.84)
    assert clip.averages == pytest.approx({"a": 0.598, "b": 0.8008})
    assert clip.clipped == pytest.approx({"b": 0.105})


NORMS = st.lists(st.tuples(*[st.floats(0, 1e6, allow_subnormal=False)] * 2), min_size=1, max_size=12)


@given(NORMS, st.integers(0, 4))
@settings(max_examples=60, deadline=None)
def test_clipping_never_increases_a_norm_nor_turns_a_gradient(steps, warm_up):
    model = Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=warm_up)
    for a, b in steps:
        put(model, a, b)
        clip()
        assert 0 <= model.a.grad[0] <= a * (1 + 1e-6)
        assert 0 <= model.b.grad[1] <= b * (1 + 1e-6)
        assert not model.a.grad[1:].any()


def test_a_gradient_of_zeros_does_not_freeze_the_parameter_for_ever():
    model = Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=2)
    for _ in range(4):
        put(model, 0.0, 0.5)
        clip()
    put(model, 0.25, 0.5)
    clip()
    assert model.a.grad.norm() == pytest.approx(0.25)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("warm_up", [0, 5])
def test_a_gradient_that_is_not_finite_is_left_and_spoils_no_average(bad, warm_up):
    model = Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=warm_up)
    put(model, 0.3, 0.4)
    clip()
    before = dict(clip.averages)
    put(model, bad, 0.4)
    assert not math.isfinite(clip())
    assert not math.isfinite(model.a.grad[0])
    assert clip.averages["a"] == before["a"]
    assert all(map(math.isfinite, clip.averages.values()))


def test_a_state_goes_on():
    model, other = Two(), Two()
    clip = tw.remedies.AdaptiveClip(model, warm_up=2)
    for _ in range(3):
        put(model, 0.3, 0.4)
        clip()
    again = tw.remedies.AdaptiveClip(other, warm_up=2)
    again.load_state_dict(clip.state_dict())
    for thing, call in ((model, clip), (other, again)):
        put(thing, 7.0, 0.1)
        call()
    assert torch.equal(model.a.grad, other.a.grad)
    assert clip.state_dict() == again.state_dict()


def test_half_precision_is_measured_in_float32_and_parameters_without_a_gradient_are_passed_over():
    model = Two().half()
    model.a.grad = torch.full((3,), 6e4, dtype=torch.float16)  # its norm is beyond float16
    clip = tw.remedies.AdaptiveClip(model)
    clip()
    assert model.a.grad.float().norm() == pytest.approx(1.0, rel=0.02)
    assert model.b.grad is None


def test_a_spike_in_one_tensor_leaves_the_others_alone():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 1))
    clip = tw.remedies.AdaptiveClip(net, warm_up=5)
    for _ in range(20):
        net.zero_grad()
        net(torch.randn(16, 8)).square().mean().backward()
        clip()
    net.zero_grad()
    net(torch.randn(16, 8)).square().mean().backward()
    net[0].weight.grad *= 1000
    clip()
    assert "0.weight" in clip.clipped
    assert clip.clipped.get("1.bias", 1.0) > 0.2
    assert net[0].weight.grad.norm() <= 1.06 * clip.averages["0.weight"]


def test_wrong_settings_are_refused():
    with pytest.raises(UsageError, match="beta"):
        tw.remedies.AdaptiveClip(Two(), beta=1.0)


def test_a_sparse_gradient_is_clipped_as_the_dense_one():
    clipped = []
    for sparse in (True, False):
        torch.manual_seed(0)
        embedding = nn.Embedding(10, 4, sparse=sparse)
        (3.0 * embedding(torch.tensor([1, 2, 2]))).sum().backward()
        norm = tw.remedies.AdaptiveClip(embedding)()
        clipped.append((norm, embedding.weight.grad.to_dense()))
    assert clipped[0][0] == pytest.approx(clipped[1][0])
    torch.testing.assert_close(clipped[0][1], clipped[1][1])
    assert float(clipped[0][1].norm()) == pytest.approx(1.0)
