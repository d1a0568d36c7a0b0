"""Alarms on how large layers are, and at what distance they are looked at."""

from __future__ import annotations

import pytest
from alarm_points import LAYERS, ONE, as_run, healthy, only, point, sick

from tailwise.training.alarms import Alarms


def test_what_starts_at_zero_in_a_whole_model_may_grow():
    """The output of a branch that starts as nothing, as many recipes have it."""

    def layers(step):
        grown = step / 50
        zero = {"spectral_norm": grown, "frobenius": 1.5 * grown, "update_ratio": min(1 / max(step, 1), 1.0)}
        return {**{name: healthy(step, i, 0.01) for i, name in enumerate(LAYERS)}, "model.layers.0.mlp.down_proj": zero}

    assert Alarms().replay(as_run(layers)) == []


@pytest.mark.parametrize("every", [1, 10, 50, 200, 1000])
def test_growth_is_one_of_steps_and_not_of_points(every):
    """The same healthy run, whose norms grow as the root of its steps, at whatever distance it is looked at."""

    def layers(step):
        grown = 0.2 * (1 + step / 10) ** 0.5
        return {name: {**healthy(step, i, 0.0), "spectral_norm": grown, "frobenius": 3 * grown}
                for i, name in enumerate(LAYERS)}  # fmt: skip

    assert "TW703" not in {alarm.rule for alarm in Alarms().replay(as_run(layers, every=every))}


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens", "transformer.wte", "classifier"])
def test_a_head_or_an_embedding_that_grows_is_named(name):
    layers = (*LAYERS[:5], name)

    def growing(step):
        by = 1.06 ** max(step - 200, 0)
        return {name: {"frobenius": 9.0 * by, "spectral_norm": 3.0 * by}}

    points = [point(step, growing(step), layers=layers) for step in range(0, 300, 10)]
    found = [alarm for alarm in Alarms().replay(points) if alarm.rule == "TW703"]
    assert found[0].layers == (name,)
    assert found[0].step <= 230


def test_a_layer_that_loses_its_weights_is_named():
    (found,) = only(sick({ONE: {"frobenius": 0.4, "spectral_norm": 0.2}}), "TW713")
    assert (found.layers, found.severity, found.step, found.since) == ((ONE,), "error", 200, 200)
