"""The functions: plain, bounded, read-only; what is asked wrongly is a fact that says so."""

import json

import numpy as np
import pytest

import tailwise as tw
from tailwise.app.assistant.charts import OF_METRIC
from tailwise.app.assistant.functions.function import FUNCTIONS, Place, call, tidy, within
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.workspace.workspace import Workspace
from tailwise.compression.choosing.amounts import ALLOCATORS
from tailwise.compression.choosing.bit_formats import ASSIGNERS
from tailwise.report.charts.chart import CHARTS
from tailwise.spectrum.metrics.metric import METRICS

ARGUMENTS = {
    "layer": {"layer": "block 3 mlp up"}, "explain": {"topic": "TW101"}, "draft_plan": {"kind": "prune", "amount": 0.5},
    "query": {"where": "alpha > 1 and role = mlp_up", "sort": "alpha"}, "aggregate": {"metric": "alpha"},
}  # fmt: skip


@pytest.fixture
def place(made):
    return Place(made.workspace, made.screen(base=made.ids["tuned"]))


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_gives_plain_small_facts_with_links(place, name):
    fact = call(name, ARGUMENTS.get(name, {}), place)
    assert "error" not in fact
    assert len(json.dumps(fact, allow_nan=False)) < 25_000
    assert all(link["href"].startswith("/") for link in fact["links"])


@pytest.mark.parametrize("name", list(FUNCTIONS))
def test_its_schema_describes_every_argument(name):
    schema = FUNCTIONS[name].schema()["function"]
    assert schema["name"] == name
    assert schema["description"]
    assert schema["parameters"]["additionalProperties"] is False
    assert all(item["description"] for item in schema["parameters"]["properties"].values())


@pytest.mark.parametrize(("name", "arguments", "says"), [
    ("nope", {}, "no function"),
    ("audit", {"audit": "modle"}, "no audit"),
    ("audit", {"path": "/etc/passwd"}, "no argument"),
    ("audit", {"audit": "../../etc/passwd"}, "no audit"),
    ("layer", {"layer": "block 99"}, "no block 99"),
    ("layer", {"layer": "block 3"}, "3 matrices"),
    ("explain", {}, "needs topic"),
    ("explain", {"topic": "alhpa"}, "nothing named"),
    ("query", {"where": "alpha >"}, "is not a filter"),
    ("query", {"where": "alhpa > 3"}, "no column"),
    ("query", {"where": "alpha > high"}, "is no number"),
    ("query", {"limit": "many"}, "is a integer"),
    ("query", {"limit": 10**400}, "is a integer"),
    ("draft_plan", {"kind": "prune", "amount": 10**400}, "is a number"),
    ("draft_plan", {"kind": "erase", "amount": 0.5}, "no kind of plan"),
    ("draft_plan", {"kind": "prune", "amount": 7}, "7"),
    ("training", {"run": "other"}, "no run"),
])  # fmt: skip
def test_what_is_asked_wrongly_is_a_fact(place, name, arguments, says):
    fact = call(name, arguments, place)
    assert says in fact["error"]


@pytest.mark.parametrize("name", ["where", "sort", "columns"])
def test_halves_of_characters_are_taken_as_text(place, name):
    assert json.dumps(call("query", {name: "\ud800"}, place), ensure_ascii=False).encode()


def test_text_that_is_a_number_is_taken(place):
    fact = call("query", {"limit": "3", "descending": "true", "sort": "alpha", "audit": None}, place)
    values = [row["alpha"] for row in fact["layers"]]
    assert len(values) == 3
    assert values == sorted(values, reverse=True)


def test_query_filters_and_says_how_many_match(place, made):
    fact = call("query", {"where": "role = mlp_up and block >= 4", "columns": "role,block"}, place)
    assert [row["block"] for row in fact["layers"]] == [4, 5]
    assert (fact["matching"], fact["of"]) == (2, 18)
    assert call("query", {"where": "name ~ UP_PROJ"}, place)["matching"] == 6
    assert call("query", {"where": "role != mlp_up"}, place)["matching"] == 12


def test_a_table_of_many_layers_is_cut_and_says_so(tmp_path):
    rng = np.random.default_rng(0)
    many = {f"blocks.{i}.{'x' * 120}.weight": rng.standard_normal((8, 8)) for i in range(600)}
    tw.audit(many, use_cache=False, metrics=["alpha_hill", "stable_rank"]).save(tmp_path / "many.audit")
    place = Place(Workspace([tmp_path]))
    fact = call("query", {"limit": 10_000, "columns": "stable_rank"}, place)
    assert len(fact["layers"]) <= 50
    assert fact["matching"] == 600
    for name in ("diagnose", "worst_layers", "audit"):
        assert len(json.dumps(call(name, {}, place))) < 25_000


def test_the_largest_list_is_cut_first():
    fact = within({"a": ["x" * 100] * 1000, "b": [1, 2, 3]}, 5000)
    assert len(json.dumps(fact)) <= 5000
    assert fact["b"] == [1, 2, 3]
    assert fact["left_off"]["a"] == 1000 - len(fact["a"])


def test_numbers_are_finite_and_short():
    assert tidy({"a": float("nan"), "b": 1 / 3, "c": (float("inf"), True)}) == {
        "a": None,
        "b": 0.333333,
        "c": [None, True],
    }


def test_nothing_is_written(made, place):
    before = {path: path.stat().st_mtime_ns for path in made.workspace.roots[0].rglob("*") if path.suffix != ".db"}
    for name in FUNCTIONS:
        call(name, ARGUMENTS.get(name, {}), place)
    after = {path: path.stat().st_mtime_ns for path in made.workspace.roots[0].rglob("*") if path.suffix != ".db"}
    assert {path: time for path, time in after.items() if "history" not in path.name} == {
        path: time for path, time in before.items() if "history" not in path.name
    }


def test_compare_names_what_changed(made):
    fact = call("compare", {"before": "model", "after": "tuned"}, Place(made.workspace, ShownPage()))
    assert fact["layers_identical"] == 12
    assert fact["layers_in_both"] == 18


def test_charts_that_are_linked_exist():
    assert set(OF_METRIC.values()) <= set(CHARTS)
    assert set(OF_METRIC) - {"kendall_tau"} <= set(METRICS)


def test_only_plans_of_these_weights_count(made):
    ours = call("plans_for", {}, Place(made.workspace, made.screen()))
    assert [item["title"] for item in ours["plans"]] == ["half"]
    assert call("plans_for", {}, Place(made.workspace, made.screen("tuned")))["plans"] == []


@pytest.mark.parametrize(("kind", "amount", "registry"), [("prune", 0.5, ALLOCATORS), ("quantize", 4.5, ASSIGNERS)])
def test_every_allocator_that_is_said_to_read_the_audit_alone_does(place, kind, amount, registry):
    said = FUNCTIONS["draft_plan"].schema()["function"]["parameters"]["properties"]["allocator"]["description"]
    for name, item in registry.items():
        if item.reads_audit_alone:
            assert name in said
            assert "error" not in call("draft_plan", {"kind": kind, "amount": amount, "allocator": name}, place)
