"""Alarms on fine-tuning by adapters: what begins at zero may grow, and one among many that is ill is named."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from alarm_points import as_run

from tailwise.training.alarm_watch import AlarmWatch
from tailwise.training.alarms import Alarms
from tailwise.training.factor_names import factor_of


def adapted(rank=16, power=1.0):
    """Points of a healthy LoRA run: B and the change start at zero, and grow as (a power of) the steps; W stays."""

    def layers(step):
        grown = (max(step, 0) / 100) ** power
        still = {"spectral_norm": 3.0, "frobenius": 9.0, "update_ratio": 0.0, "alpha_hill": 3.0, "alpha": 2.5}
        first = {**still, "update_ratio": 1e-3, "alpha_hill": 5 - 0.01 * step}
        second = {"spectral_norm": grown, "frobenius": 1.2 * grown, "alpha_hill": 9 - 0.02 * step}
        second |= {"stable_rank": 1.4, "alpha": 1.3, "ks_distance": 0.05, "num_pl_spikes": 60.0} if step else {}
        second |= {"update_ratio": min(power / step, 1.0)} if step else {}
        found = {}
        for i in range(6):
            name = f"model.layers.{i}.q_proj"
            found |= {f"base_model.model.{name}.base_layer": still, name: second,
                      f"base_model.model.{name}.lora_A.default": first,
                      f"base_model.model.{name}.lora_B.default": second}  # fmt: skip
        return found

    return layers


@pytest.mark.parametrize("first", [0, 10, 200])
@pytest.mark.parametrize("power", [1.0, 1.8], ids=["constant rate", "warm-up"])
def test_a_healthy_adapter_is_no_alarm(power, first):
    assert Alarms().replay(as_run(adapted(power=power), first=first)) == []


@pytest.mark.parametrize(("harm", "code"), [
    (lambda values, step: {"update_ratio": 30 / step}, "TW704"),
    (lambda values, step: dict.fromkeys(("spectral_norm", "frobenius"), 2.0 * 1.06 ** (step - 200)), "TW703"),
    (lambda values, step: {"frobenius": math.nan, "spectral_norm": math.nan}, "TW701"),
    (lambda values, step: {"update_ratio": 0.0}, "TW705"),
    (lambda values, step: {"frobenius": 0.0, "spectral_norm": 0.0}, "TW713"),
])  # fmt: skip
def test_an_adapter_that_is_ill_is_named(harm, code):
    healthy_layers = adapted()
    ill = "base_model.model.model.layers.3.q_proj.lora_B.default"

    def layers(step):
        found = healthy_layers(step)
        return found | ({ill: {**found[ill], **harm(found[ill], step)}} if step > 200 else {})

    found = [alarm for alarm in Alarms().replay(as_run(layers)) if alarm.rule == code]
    assert found
    assert found[0].layers == (ill,)
    assert 200 < found[0].step <= 240


def test_an_adapter_that_goes_to_and_fro_is_no_alarm():
    """Under SGD near its end ‖B‖ is as the root of its age, and a step moves it by one part in that."""
    made = adapted()

    def layers(step):
        found = made(step)
        second = [name for name, values in found.items() if step > 0 and values.get("stable_rank") == 1.4]
        return found | {name: {**found[name], "update_ratio": 0.9 / math.sqrt(step)} for name in second}

    assert "TW704" not in {alarm.rule for alarm in Alarms().replay(as_run(layers))}


ILL = "base_model.model.model.layers.3.q_proj.lora_B.default"


def stepping(ratio):
    """A healthy run whose second factors move by `ratio(layer, step)` times what they did."""
    made = adapted()

    def layers(step):
        found = made(step)
        ratios = {name: values["update_ratio"] * ratio(name, step) for name, values in found.items()
                  if ".lora_B" in name and step}  # fmt: skip
        return found | {name: {**found[name], "update_ratio": value} for name, value in ratios.items()}

    return as_run(layers)


def test_one_factor_that_moves_far_more_than_its_like_is_named_though_that_is_little():
    """A direction grows in it: a step of two parts in its age, which any young factor may make."""
    (found,) = Alarms().replay(stepping(lambda name, step: 4.0 if name == ILL and step > 200 else 1.0))
    assert (found.rule, found.severity, found.layers, found.step) == ("TW704", "warning", (ILL,), 220)
    assert "median of its kind" in found.title


@pytest.mark.parametrize("ratio", [
    lambda name, step: 4.0 if step > 200 else 1.0,
    lambda name, step: 4.0 if name == ILL else 1.0,
    lambda name, step: 1.0 if name == ILL or step <= 200 else 0.2,
], ids=["all of them", "always", "the others slow down"])  # fmt: skip
def test_what_moves_with_its_like_or_as_it_always_did_is_no_alarm(ratio):
    assert Alarms().replay(stepping(ratio)) == []


@pytest.mark.parametrize("factor", ["lora_A", "lora_B", "lora_embedding_B"])
def test_a_factor_whose_gradient_is_off_is_named(factor):
    """What both make goes on moving by the other one, and the base weights never move: neither is named."""
    made = adapted()
    ill = f"base_model.model.model.layers.3.q_proj.{factor}.default"

    def layers(step):
        found = {name.replace("lora_B", factor) if factor != "lora_A" else name: v for name, v in made(step).items()}
        return found | ({ill: {**found[ill], "update_ratio": 0.0}} if step > 200 else {})

    (found,) = Alarms().replay(as_run(layers))
    assert (found.rule, found.layers, found.step) == ("TW705", (ill,), 220)


def renamed(points, names):
    return [replace(one, layers={names(name): values for name, values in one.layers.items()}) for one in points]


NAMINGS = {
    "injected": lambda name: name.removeprefix("base_model.model."),
    "fused": lambda name: name if name.startswith("base_model") else f"{name}#q",
    "one's own": lambda name: (name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".default", "")
                               .replace("lora_A", "lora_a").replace("lora_B", "lora_b")
                               if name.startswith("base_model") else f"{name}#lora"),
}  # fmt: skip


@pytest.mark.parametrize("naming", NAMINGS)
def test_adapters_are_known_under_other_names_too_where_they_are_not_seen_from_their_beginning(naming):
    healthy = renamed(as_run(adapted(), first=200), NAMINGS[naming])
    assert Alarms().replay(healthy) == []
    watch = AlarmWatch(frozenset(), frozenset(), {})
    watch.take(healthy[0])
    changes = {layer for layer in healthy[0].layers if watch.adapts(layer) and not factor_of(layer)}
    assert changes == {NAMINGS[naming](f"model.layers.{i}.q_proj") for i in range(6)}
