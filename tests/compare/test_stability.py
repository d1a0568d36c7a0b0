"""How far an order of models can be believed."""

from __future__ import annotations

import numpy as np
import pytest

from tailwise.judging.compare.stability import stability


def layers(mean, seed, roles=("q", "up"), count=20, spread=0.3):
    draws = np.random.default_rng(seed).normal(0.0, spread, (len(roles), count))
    return {
        f"layers.{index}.{role}": (role, mean + float(draws[place, index]))
        for place, role in enumerate(roles) for index in range(count)
    }  # fmt: skip


def test_models_that_differ_by_much_are_in_a_sure_order():
    found = stability(["a", "b", "c"], [layers(mean, 1) for mean in (2.0, 3.0, 4.0)], {})
    assert found.first == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert found.neighbours == (1.0, 1.0)
    assert found.sure
    assert found.roles == {"q": 1.0, "up": 1.0}


def test_models_that_differ_by_the_noise_of_training_are_not():
    found = stability(["a", "b"], [layers(3.0, 1), layers(3.0, 2)], {})
    assert 0.02 < found.first["a"] < 0.98
    assert not found.sure


def test_layers_of_one_name_are_drawn_together():
    one = layers(3.0, 5, spread=2.0)
    slightly = {name: (role, value + 0.01) for name, (role, value) in one.items()}
    assert stability(["a", "b"], [one, slightly], {}).first["a"] == 1.0
    renamed = {f"x.{name}": item for name, item in slightly.items()}
    assert stability(["a", "b"], [one, renamed], {}).first["a"] < 0.8


def test_roles_and_numbers_that_order_otherwise_are_told():
    turned = [
        {**layers(mean, 1, ("q",)), **{n: (r, -v) for n, (r, v) in layers(mean, 1, ("up",)).items()}}
        for mean in (2, 3, 4)
    ]
    found = stability(["a", "b", "c"], turned, {"mean_stable_rank": [9.0, 5.0, 1.0], "mean_log_norm": [1.0, None, 2.0]})
    assert found.roles == {"q": 1.0, "up": -1.0}
    assert found.metrics == {"mean_stable_rank": -1.0, "mean_log_norm": None}


@pytest.mark.parametrize("models", [[], [layers(2.0, 1)], [layers(2.0, 1), layers(2.0, 1, ("q",), 2)]])
def test_too_little_says_nothing(models):
    assert stability([str(i) for i in range(len(models))], models, {}) is None
