"""Damaged inputs, some seconds of each kind: read, or told in one of our errors. `benchmarks/fuzz.py` goes on."""

import random

import fuzz_mutations as mutations
import fuzz_targets as targets
import pytest

#: Inputs of each kind; chosen for a few seconds.
_COUNTS = {"audit": 60, "config": 150, "adapter": 150, "pickle": 150, "index": 100}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", targets.TARGETS)
def test_no_damage_is_a_surprise(name, tmp_path):
    wrong = {}
    kinds = set()
    for seed in range(_COUNTS.get(name, 200)):
        outcome = targets.attempt(name, seed, tmp_path / "input")
        kinds.add(outcome.kind)
        if not outcome.is_fine:
            wrong[seed] = outcome
    assert not wrong
    assert "told" in kinds  # the damage is damage


#: What the longer command has found, by kind: one input of each fault.
_FOUND = {"onnx": (449, 18636), "compressed": (588,), "audit": (1797, 2359, 5897, 7792, 9175), "distributed": (7147,)}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", _FOUND)
def test_what_was_found_once_is_no_surprise_any_more(name, tmp_path):
    outcomes = {seed: targets.attempt(name, seed, tmp_path / "input") for seed in _FOUND[name]}
    assert not {seed: outcome for seed, outcome in outcomes.items() if not outcome.is_fine}


def test_the_same_seed_is_the_same_input(tmp_path):
    for name in ("safetensors", "plan", "pickle"):
        inputs = []
        for place in ("a", "b"):
            folder = tmp_path / name / place
            folder.mkdir(parents=True)
            inputs.append(targets.TARGETS[name].make(random.Random(5), folder).read_bytes())
        assert inputs[0] == inputs[1] or name == "pickle"  # a zip archive has the time in it


def test_a_surprise_is_found_and_located(tmp_path, monkeypatch):
    def stumble(path):
        raise IndexError("of something")

    monkeypatch.setitem(targets.TARGETS, "gates", targets.Target(targets.TARGETS["gates"].make, stumble))
    outcome = targets.attempt("gates", 0, tmp_path / "x")
    assert not outcome.is_fine
    assert outcome.kind == "IndexError"
    assert mutations.of_document({"a": 1}, random.Random(0)) != {"a": 1}
