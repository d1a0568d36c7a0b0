"""Rules on real training, with the monitor: runs that are too small for anything but their one illness."""

from __future__ import annotations

import torch

import tailwise as tw
from tailwise.training.alarms import Alarms


def trained(model, steps, lr, batch, every=10, evaluate=None, **settings):
    """What the alarms say of so many steps of SGD."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    inputs, targets = batch
    settings = {"full": "off", "max_overhead": 1.0, "rules": [Alarms()], **settings}
    with tw.Monitor(model, every=every, **settings) as monitor:
        for step in range(1, steps + 1):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(inputs), targets)
            loss.backward()
            optimizer.step()
            if evaluate is not None and step % every == every // 2:  # at steps without a point
                monitor.note(eval_loss=evaluate(model))
            monitor.step(loss=loss)
    assert monitor.report().errors == ()
    return monitor.alarms


def network(inputs, width, classes):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(inputs, width), torch.nn.ReLU(), torch.nn.Linear(width, classes))


def classes(count, seed, noise):
    """Points around eight centres, and which centre."""
    centres = torch.randn(8, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(8, (count,), generator=generator)
    return centres[labels] + noise * torch.randn(count, 16, generator=generator), labels


def test_a_run_that_diverges_to_nan_is_not_finite():
    """TW701 tells of the loss at its step, and names the layers at the first point after it and once."""
    batch = classes(64, 1, 0.5)
    found = [alarm for alarm in trained(network(16, 32, 8), 100, 1e20, batch) if alarm.rule == "TW701"]
    assert (found[0].step, found[0].layers) == (2, ())
    found = [alarm for alarm in found if alarm.layers]
    assert found[0].step == 10
    assert {layer for alarm in found for layer in alarm.layers} == {"0", "2"}
    assert found[0].severity == "error"
    assert found[0].title.count("frobenius") == 1


def test_a_healthy_run_is_neither_not_finite_nor_over_fitted():
    batch, held = classes(2048, 1, 0.5), classes(512, 2, 0.5)
    found = trained_with_held_out(network(16, 32, 8), batch, held, lr=0.1)
    assert {"TW701", "TW712"}.isdisjoint(alarm.rule for alarm in found)


def test_a_run_on_too_few_examples_over_fits():
    """TW712 comes after the lowest held-out loss, while the training loss still falls."""
    batch, held = classes(24, 1, 2.0), classes(512, 2, 2.0)
    seen = []
    found = trained_with_held_out(network(16, 64, 8), batch, held, lr=0.5, seen=seen)
    (alarm,) = [alarm for alarm in found if alarm.rule == "TW712"]
    lowest = min(range(len(seen)), key=seen.__getitem__)
    assert 10 * lowest < alarm.step
    assert alarm.evidence["eval_loss"] > 1.05 * alarm.evidence["lowest"]
    assert alarm.evidence["loss"] < alarm.evidence["lowest"]


def trained_with_held_out(model, batch, held, *, lr, seen=None):
    def evaluate(model):
        with torch.no_grad():
            loss = float(torch.nn.functional.cross_entropy(model(held[0]), held[1]))
        if seen is not None:
            seen.append(loss)
        return loss

    return trained(model, 300, lr, batch, evaluate=evaluate)
