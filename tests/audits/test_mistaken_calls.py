"""What a notebook gets wrong: a metric that raises, settings of a wrong type, values that are no spectrum."""

from __future__ import annotations

import numpy as np
import pytest

import tailwise as tw
from tailwise.audits.cache import baseline_key
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe, RunOptions
from tailwise.spectrum.metrics.metric import METRICS, metric
from tailwise.spectrum.power_law import ESTIMATORS, fit_tail

RNG = np.random.default_rng(0)
WEIGHTS = {f"layers.{i}.weight": RNG.standard_normal((80, 60 + i)) for i in range(3)}
FAST = {"use_cache": False, "baseline_replicas": 2}


@pytest.fixture
def own_metric(monkeypatch):
    """A metric of one's own that fails for every matrix but one."""
    list(METRICS)
    monkeypatch.setattr(METRICS, "_items", dict(METRICS._items))

    @metric(formula="λ_max", source="this test", unit="λ")
    def fragile(spectrum):
        """The largest eigenvalue, if one is lucky."""
        if spectrum.m != 60:
            raise ZeroDivisionError("no luck")
        return float(spectrum.eigenvalues[-1])

    return fragile


def test_a_metric_that_raises_costs_its_own_cell_alone_and_is_named(own_metric):
    audit = tw.audit(WEIGHTS, **FAST)
    assert len(audit) == 3
    plain = {layer.row.name: layer.row.metrics["alpha"] for layer in audit}
    assert [layer.row.metrics["fragile"] is None for layer in audit] == [False, True, True]
    assert "the metric fragile raised ZeroDivisionError: no luck" in audit.rows[1].reason
    (note,) = [note for note in audit.provenance.notes if "fragile" in note]
    assert "2 of 3 matrices" in note
    assert "no luck" in note
    assert all(value is not None for value in plain.values())
    assert {layer.row.status for layer in audit} == {"OK"}


def test_a_metric_out_of_memory_is_no_empty_cell(monkeypatch):
    list(METRICS)
    monkeypatch.setattr(METRICS, "_items", dict(METRICS._items))

    @metric(formula="", source="this test")
    def greedy(spectrum):
        """All of it."""
        raise MemoryError

    assert {row.status for row in tw.audit(WEIGHTS, **FAST).rows} != {"OK"}


@pytest.mark.parametrize(
    ("name", "value"),
    [("seed", 1.5), ("seed", "1"), ("randomize", "yes"), ("randomize", -1), ("k_frac", "0.1"), ("rivals", 1),
     ("estimator", 3), ("bootstrap", float("nan")), ("min_evals", None), ("workers", 0),
     ("workers", "two"), ("patience", -1), ("use_cache", "no"), ("device", 0), ("num_gpus", "all")],
)  # fmt: skip
def test_a_setting_of_a_wrong_type_is_told_before_any_work(name, value):
    with pytest.raises(UsageError) as caught:
        tw.audit(WEIGHTS, **{**FAST, name: value})
    assert name in str(caught.value)


def test_whole_numbers_may_come_from_numpy_or_as_floats():
    recipe = Recipe(seed=np.int64(3), randomize=2.0, k_frac=np.float32(0.25))
    assert (recipe.seed, recipe.randomize, recipe.k_frac) == (3, 2, 0.25)
    assert type(recipe.seed) is int
    assert RunOptions(workers=2).workers == 2


def test_eigenvalues_in_any_order_give_the_same_fit():
    values = tw.audit(WEIGHTS, **FAST)["layers.0"].spectrum.eigenvalues
    for estimator in ESTIMATORS:
        fits = {fit_tail(given, estimator) for given in (values, values[::-1], list(RNG.permutation(values)))}
        assert len(fits) == 1


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -1.0])
def test_what_is_no_spectrum_has_no_fit(wrong):
    with pytest.raises(UsageError):
        fit_tail([1.0, 2.0, wrong, 3.0], "ks")
    with pytest.raises(UsageError):
        fit_tail(np.ones((4, 4)), "ks")


def test_what_a_solver_leaves_below_zero_counts_as_zero():
    values = np.array([0.0, *np.linspace(1, 100, 80)])
    below = values.copy()
    below[0] = -1e-14
    assert fit_tail(below, "ks") == fit_tail(values, "ks")


def test_noise_is_not_that_of_another_estimator_of_the_same_name(monkeypatch):
    before = baseline_key(80, 60, 1, Recipe())
    monkeypatch.setitem(ESTIMATORS._items, "ks", lambda eigenvalues, options: fit_tail(eigenvalues, "mid", options))
    assert baseline_key(80, 60, 1, Recipe()) != before


@pytest.mark.parametrize("name", ["x.csv", "x.json", "x.parquet"])
def test_an_audit_is_not_saved_under_the_name_of_a_table(name, tmp_path):
    audit = tw.audit(WEIGHTS, **FAST)
    with pytest.raises(UsageError, match="to_pandas"):
        audit.save(tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_names_are_a_list_or_one():
    with pytest.raises(UsageError, match="list of names"):
        tw.audit(WEIGHTS, **FAST, metrics=5)
    with pytest.raises(UsageError, match="no metric named"):
        tw.audit(WEIGHTS, **FAST, metrics="alpah")
