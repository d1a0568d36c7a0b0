"""A small model, its training, and a sink and a clock to look at."""

from __future__ import annotations

import pytest
import torch


class Kept:
    """A sink that keeps what it gets."""

    def __init__(self):
        self.points = []

    def write(self, point):
        self.points.append(point)

    def of(self, cadence):
        return [point for point in self.points if point.cadence == cadence]


class Clock:
    """Time that passes when it is told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def kept():
    return Kept()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def model():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(48, 96), torch.nn.ReLU(), torch.nn.Linear(96, 24))


@pytest.fixture
def train():
    """(model, monitor, steps) → that many optimizer steps; the clock, where one is given, runs a second a step."""

    def run(model, monitor, steps, clock=None, inputs=48):
        optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
        for _ in range(steps):
            loss = model(torch.randn(8, inputs)).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if clock is not None:
                clock.now += 1.0
            monitor.step(loss=loss)
        return loss.detach()

    return run
