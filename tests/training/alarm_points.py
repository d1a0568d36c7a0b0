"""Points of made-up runs."""

from __future__ import annotations

import math
import random

from tailwise.history.point import Point
from tailwise.training.alarms import Alarms

LAYERS = tuple(f"model.layers.{i}.mlp.up_proj" for i in range(6))
ONE = LAYERS[2]


def healthy(step, layer=0, noise=0.0):
    """What a layer of a healthy run has; slowly moving, with noise."""
    early = math.exp(-step / 300)
    shift = random.Random(step * 100 + layer).uniform(-noise, noise)
    return {
        "spectral_norm": 3.0 - early + shift, "frobenius": 9.0 - early, "stable_rank": 13.0 + 3 * early,
        "update_ratio": 0.002 + 0.0001 * shift, "singular_entropy": 0.4 - 0.1 * early, "alpha": 2.4 + early,
        "alpha_hill": 2.6 + early, "ks_distance": 0.05, "num_pl_spikes": 60.0, "num_traps": 0.0,
    }  # fmt: skip


def loss(step):
    return 3.0 + 2.0 * math.exp(-step / 300) + random.Random(step).uniform(-0.05, 0.05)


def point(step, changes=None, *, run="r", scalars=None, notes=(), layers=LAYERS):
    """A point of a healthy run, with `changes`: layer or "*" → values in place of the healthy ones."""
    found = {}
    for index, name in enumerate(layers):
        found[name] = {**healthy(step, index, 0.01), **(changes or {}).get("*", {}), **(changes or {}).get(name, {})}
    return Point(run, step, "full", float(step), found, {"loss": loss(step), "lr": 1e-3, **(scalars or {})}, notes)


def healthy_run(count=30, every=10, **named):
    return [point(step, **named) for step in range(0, count * every, every)]


def sick(changes, *, start=200, count=30, **named):
    """A healthy run whose points from step `start` on have `changes` (a function of the step, or fixed)."""
    made = healthy_run(start // 10)
    for step in range(start, count * 10, 10):
        found = changes(step) if callable(changes) else changes
        made.append(point(step, found, **{key: (v(step) if callable(v) else v) for key, v in named.items()}))
    return made


def codes(points, **named):
    return {alarm.rule for alarm in Alarms(**named).replay(points)}


def only(points, code):
    """The alarms, which are all of one rule."""
    found = Alarms().replay(points)
    assert {alarm.rule for alarm in found} == {code}
    return found


def as_run(layers, count=30, every=10, first=0):
    return [Point("r", step, "full", float(step), layers(step), {"loss": loss(step)})
            for step in range(first, count * every, every)]  # fmt: skip
