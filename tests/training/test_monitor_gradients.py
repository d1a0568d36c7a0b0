"""Norms of gradients by layer: what the optimizer found, at the steps that are measured, and no hook else."""

from __future__ import annotations

import gc

import pytest
import torch
from torch.optim import optimizer as torch_optimizer

import tailwise as tw


def hooks():
    gc.collect()  # those of remedies that are gone
    return len(torch_optimizer._global_optimizer_pre_hooks)


def train(model, monitor, optimizers, steps, clip=None):
    """The norms of the gradients of each step, before they are set to none."""
    seen = []
    for _ in range(steps):
        model(torch.randn(8, 48)).square().mean().backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        seen.append({name: float(p.grad.norm()) for name, p in model.named_parameters() if p.grad is not None})
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        monitor.step()
    return seen


@pytest.mark.parametrize("clip", [None, 1e-3])
@pytest.mark.parametrize("two", [False, True])
def test_norms_are_those_of_the_step_and_by_layer(model, kept, clip, two):
    parts = [model[0].parameters(), model[2].parameters()] if two else [model.parameters()]
    optimizers = [torch.optim.SGD(list(part), lr=0.1) for part in parts]
    settings = {"every": 5, "full": "off", "sinks": [kept], "max_overhead": 1.0, "gradients": True}
    before = hooks()
    with tw.Monitor(model, **settings) as monitor:
        seen = train(model, monitor, optimizers, 12, clip)
        assert hooks() == before
    measured = [point for point in kept.points if point.step]
    assert [point.step for point in measured] == [5, 10]
    for point in measured:
        for name in ("0", "2"):
            assert point.layers[name]["grad_norm"] == pytest.approx(seen[point.step - 1][f"{name}.weight"], rel=1e-5)
    assert monitor.report().errors == ()


def test_a_layer_that_no_gradient_reaches_has_zero(model, kept):
    with tw.Monitor(model, every=2, full="off", sinks=[kept], max_overhead=1.0, gradients=True) as monitor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        for _ in range(2):
            model[0](torch.randn(8, 48)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            monitor.step()
    assert kept.points[-1].layers["2"]["grad_norm"] == 0.0
    assert kept.points[-1].layers["0"]["grad_norm"] > 0.0


def test_without_the_option_there_is_no_hook_and_no_norm(model, kept):
    before = hooks()
    with tw.Monitor(model, every=2, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        train(model, monitor, [torch.optim.SGD(model.parameters(), lr=0.1)], 4)
        assert hooks() == before
    assert all("grad_norm" not in values for point in kept.points for values in point.layers.values())


def test_parts_of_fused_projections_have_norms_of_their_own(kept):
    attention = torch.nn.MultiheadAttention(32, 4)
    with tw.Monitor(attention, every=1, full="off", sinks=[kept], max_overhead=1.0, gradients=True) as monitor:
        optimizer = torch.optim.SGD(attention.parameters(), lr=0.1)
        x = torch.randn(5, 2, 32)
        attention(x, x, x)[0].square().sum().backward()
        parts = [float(part.norm()) for part in attention.in_proj_weight.grad.chunk(3)]
        optimizer.step()
        monitor.step()
    found = [kept.points[-1].layers[f"in_proj_weight#{part}"]["grad_norm"] for part in "qkv"]
    assert found == pytest.approx(parts, rel=1e-5)
