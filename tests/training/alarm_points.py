"""Points of made-up runs."""

from __future__ import annotations

import math
import random

from tailwise.history.point import Point

LAYERS = tuple(f"model.layers.{i}.mlp.up_proj" for i in range(6))


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
