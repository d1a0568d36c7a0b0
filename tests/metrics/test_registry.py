"""A registry: explicit built-ins, entry points of third parties, one item per name."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe
from tailwise.core.registry import Registry
from tailwise.spectrum.metrics.facts import Facts, Spectra, completed, measure, selected
from tailwise.spectrum.metrics.metric import FACTS, METRICS, metric
from tailwise.spectrum.spectrum import Spectrum


def fruits(monkeypatch, *points):
    """A registry with two built-ins, and the given (name, loader) entry points of the group `tailwise.fruits`."""
    asked = []

    def entry_points(*, group):
        asked.append(group)
        return [SimpleNamespace(name=name, load=load) for name, load in points]

    monkeypatch.setattr("tailwise.core.registry.entry_points", entry_points)
    loads = []

    def built_ins():
        loads.append(1)
        registry.add("pear", 1)
        registry.add("apple", 2)

    registry = Registry("fruit", "tailwise.fruits", built_ins)
    return registry, asked, loads


def test_built_ins_come_first_in_their_order_and_third_parties_after(monkeypatch):
    registry, asked, loads = fruits(monkeypatch, ("plum", lambda: registry.add("plum", 3)))
    assert asked == loads == []  # nothing happens before the first look-up
    assert list(registry) == ["pear", "apple", "plum"]
    assert registry.items() == [("pear", 1), ("apple", 2), ("plum", 3)]
    assert registry["plum"] == 3
    assert "plum" in registry
    assert "stone" not in registry
    assert (asked, loads) == (["tailwise.fruits"], [1])  # and once


def test_a_second_item_of_a_name_is_refused(monkeypatch):
    registry, _, _ = fruits(monkeypatch)
    registry.add("plum", 3)
    with pytest.raises(UsageError, match="the fruit 'plum' is registered twice"):
        registry.add("plum", 4)
    assert registry["plum"] == 3


def test_a_third_party_cannot_replace_a_built_in_and_is_named_at_every_attempt(monkeypatch):
    registry, _, _ = fruits(monkeypatch, ("apple", lambda: registry.add("apple", 99)))
    for _ in range(2):
        with pytest.raises(UsageError, match="'apple' is registered twice"):
            list(registry)


def test_an_unknown_name_is_answered_with_near_ones(monkeypatch):
    registry, _, _ = fruits(monkeypatch)
    with pytest.raises(UsageError, match="there is no fruit named 'appel'") as caught:
        registry["appel"]
    assert caught.value.fix == "did you mean apple?"
    with pytest.raises(UsageError) as caught:
        registry["xyz"]
    assert caught.value.fix == "known: apple, pear"


def test_built_ins_that_failed_to_load_are_not_taken_for_loaded():
    def broken():
        raise ImportError("no such module")

    registry = Registry("fruit", "tailwise.nothing", broken)
    for _ in range(2):
        with pytest.raises(ImportError):
            list(registry)


def test_every_metric_says_what_it_is_where_it_comes_from_and_what_it_needs():
    assert len(METRICS.items()) > 30
    for name, item in METRICS.items():
        assert item.name == name == item.compute.__name__
        assert item.formula
        assert item.source
        assert item.summary.endswith(".")
        assert set(item.needs) <= set(FACTS)
        assert item.needs


def test_facts_provide_everything_a_metric_may_ask_for():
    facts = Facts(Spectra(Spectrum(np.arange(1.0, 61), 60, 60)), Recipe(bootstrap=3, baseline_replicas=2))
    for name in FACTS:
        assert getattr(facts, name) is not None, name


def test_a_metric_that_asks_for_what_there_is_not_is_refused_where_it_is_defined():
    with pytest.raises(TypeError, match="spectrun"):

        @metric("λ", source="nowhere")
        def misspelt(spectrun):
            return 0.0

    assert "misspelt" not in METRICS


OWN_METRIC = """
import numpy as np
import tailwise as tw

@tw.metric("λ_max / λ_min", source="test", unit="1")
def condition_of_my_own(spectrum):
    '''How ill the matrix is.'''
    return float(spectrum.eigenvalues[-1] / spectrum.eigenvalues[0])

row = tw.audit({"w": np.diag(np.arange(1.0, 61))}, use_cache=False).rows[0]
print(row.metrics["condition_of_my_own"], list(row.metrics)[0])
"""


def test_a_metric_defined_before_the_first_audit_is_measured_after_the_built_ins():
    done = subprocess.run([sys.executable, "-c", OWN_METRIC], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["3600.0", "alpha"], done.stderr


def test_families_come_in_one_order_whichever_was_imported_first():
    code = "{}\nfrom tailwise.spectrum.metrics.metric import METRICS\nprint(*METRICS)"
    orders = {
        subprocess.run([sys.executable, "-c", code.format(first)], capture_output=True, text=True, check=True).stdout
        for first in ("", "import tailwise.spectrum.metrics.bulk", "import tailwise.spectrum.metrics.norms_ranks")
    }
    assert len(orders) == 1


@pytest.mark.parametrize(("recipe", "there", "not_there"), [
    (Recipe(), {"alpha", "alpha_z", "num_spikes"}, {"num_traps", "alpha_low", "alpha_truncated"}),
    (Recipe(randomize=1), {"num_traps", "rand_distance", "alpha_permuted"}, {"alpha_low"}),
    (Recipe(bootstrap=2), {"alpha_low", "alpha_high"}, {"num_traps"}),
    (Recipe(metrics=("alpha_truncated",)), {"alpha_truncated"}, {"alpha"}),
])  # fmt: skip
def test_a_recipe_selects_what_its_options_provide(recipe, there, not_there):
    names = {item.name for item in selected(recipe)}
    assert there <= names
    assert not names & not_there
    values = np.sort(np.random.default_rng(0).pareto(1.5, 60) + 1)
    spectrum = Spectrum(values, 60, 60)
    assert measure(Spectra(spectrum, permuted=(spectrum,)), recipe.replace(baseline_replicas=2)).keys() == names


def test_a_recipe_is_completed_with_what_its_metrics_need():
    assert completed(Recipe(metrics=("num_traps",))).randomize == 1
    assert completed(Recipe(metrics=("num_traps",), randomize=4)).randomize == 4
    assert completed(Recipe(metrics=("alpha_high",))).bootstrap == 200
    assert completed(Recipe(metrics=("alpha",))) == Recipe(metrics=("alpha",))
