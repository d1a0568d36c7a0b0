"""What a comparison comes to, in one sentence."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import tailwise as tw
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta
from tailwise.judging.compare.conclusion import OF_ALPHA, conclusion, direction
from tailwise.report import comparison_page as report

NEARER, FARTHER = "nearer to α 2–4", "farther from α 2–4"


def layer(name: str, before: float, after: float, *, sure: bool | None = True, trusted: bool = True) -> LayerDelta:
    delta = Delta(before, after, after - before, 5.0, sure)
    return LayerDelta(name, name, "mlp_up", 0, False, {"alpha": delta}, trusted=trusted)


def of(*layers: LayerDelta, **more) -> Comparison:
    return Comparison("a", "b", layers, more.pop("added", ()), more.pop("missing", ()), (), (), {}, **more)


@pytest.mark.parametrize(
    ("before", "after", "word"),
    [(6.0, 4.5, NEARER), (1.2, 1.8, NEARER), (3.0, 5.0, FARTHER), (3.0, 1.5, FARTHER), (2.5, 3.5, "no verdict")],
)
def test_it_is_said_where_alpha_went(before, after, word):
    assert direction(layer("x", before, after)) == word
    assert direction(layer("x", before, after, trusted=False)) == "no verdict"
    assert direction(layer("x", before, after, sure=False)) == "no verdict"


def test_the_sentence_counts():
    found = of(
        layer("a", 6, 4.5), layer("b", 6, 3), layer("c", 3, 5), layer("d", 2.5, 3.5), layer("e", 3, 3.1, sure=False)
    )
    moved = "4 of 5 matrices moved beyond their error"
    assert conclusion(found) == f"{moved}: 2 {NEARER}, 1 {FARTHER}, 1 no verdict. {OF_ALPHA}"
    assert "1 no verdict; 1 matrix is in one of the two alone." in conclusion(replace(found, missing=("z",)))


def test_most_without_a_verdict_is_not_nothing():
    unsure = [layer(name, 6, 1.5, trusted=False) for name in "abc"]
    said = conclusion(of(*unsure, layer("d", 1.5, 1.6, trusted=False), layer("e", 3, 5)))
    assert said.startswith(f"5 of 5 matrices moved beyond their error: 1 {FARTHER}, 4 no verdict. Of those without")
    assert "the exponents of 3 fell and of 1 rose" in said
    assert "tailwise diagnose" in said
    assert "diagnose" not in conclusion(of(*unsure, *(layer(name, 3, 5) for name in "def")))


def test_nothing_beyond_its_error_and_nothing_to_hold_against():
    still = conclusion(of(layer("a", 3, 3.1, sure=False)))
    assert still.startswith("1 of 1 matrix changed, none of them in α beyond its error.")
    assert conclusion(of(layer("a", 3, 3.1, sure=None))).startswith("No verdict")
    assert conclusion(of()).startswith("Nothing is compared")


def test_a_collapse_is_told_where_alpha_says_nothing():
    rng = np.random.default_rng(0)
    weights = {f"layers.{block}.mlp.up_proj.weight": rng.standard_normal((64, 96)) for block in range(3)}
    name = "layers.1.mlp.up_proj"
    spike = np.outer(rng.standard_normal(64), rng.standard_normal(96)) * 10
    broken = {**weights, f"{name}.weight": weights[f"{name}.weight"] + spike}
    before, after = tw.audit(weights, use_cache=False), tw.audit(broken, use_cache=False)
    for pair in ((before, after), (after, before)):
        said = conclusion(tw.compare(*pair))
        assert "Of 1 matrix the largest eigenvalue or the stable rank became 5 times what it was or more" in said
        assert f"first {name} (λ_max" in said
    assert "largest eigenvalue" not in conclusion(tw.compare(before, before))


def test_it_comes_first_in_every_rendering():
    rng = np.random.default_rng(0)
    weights = {f"layers.{block}.mlp.up_proj.weight": rng.standard_normal((64, 96)) for block in range(3)}
    audit = tw.audit(weights, use_cache=False)
    same = tw.compare(audit, audit)
    assert conclusion(same) == "Nothing changed: all 3 matrices are identical, to the byte."
    assert report.markdown(same).splitlines()[2] == conclusion(same)


def test_where_most_trusted_fits_are_of_the_bulk_nothing_is_said_of_where_it_went():
    bulk = [replace(layer(name, 3, 5), of_bulk=True) for name in "abc"]
    assert all(direction(one) == "no verdict" for one in bulk)
    assert conclusion(of(*bulk, layer("d", 3, 5), layer("e", 6, 3))) == (
        "No verdict: 5 of 5 matrices moved beyond their error, but alpha describes the bulk rather than a tail "
        "(TW502) in 3 of the 5 with a good fit on both sides, so none is said to be nearer to α 2–4 or farther."
    )
    few = of(bulk[0], layer("d", 3, 5), layer("e", 6, 3))
    moved = "3 of 3 matrices moved beyond their error"
    assert conclusion(few).startswith(f"{moved}: 1 {NEARER}, 1 {FARTHER}, 1 no verdict. ")
    untouched = [replace(one, identical=True) for one in bulk]
    assert f"1 {FARTHER}" in conclusion(of(*untouched, layer("d", 3, 5))), "what did not change decides nothing"


def test_a_fit_over_most_of_the_spectrum_says_so_in_the_comparison_and_the_ranking(make):
    """Entries of Pareto tails: the smallest D takes in most of the spectrum, as rule TW502 says."""
    audits = {
        name: make.audited({f"layers.{b}.mlp.up_proj.weight": make.heavy(b, exponent=e) for b in range(4)})
        for name, e in (("light", 0.3), ("heavy", 0.9))
    }
    counts = {
        name: sum(len(one.evidence) for one in tw.diagnose(audit).findings if one.code == "TW502")
        for name, audit in audits.items()
    }
    ranking = tw.rank(audits, by="alpha")
    assert {one.name: one.values["bulk_fits"] for one in ranking.models} == counts == {"light": 4, "heavy": 4}
    said = "no verdict on which is better: alpha describes the bulk rather than a tail in most trusted fits (TW502) of "
    assert f"{said}heavy (4 of 4), light (4 of 4)" in repr(ranking)
    assert report.ranking_markdown(ranking).splitlines()[2].startswith(said.capitalize()[:30])
    assert "TW502" not in repr(tw.rank(audits, by="stable_rank"))
    found = tw.compare(audits["light"], audits["heavy"])
    assert all(one.of_bulk for one in found.layers)
    assert repr(found).partition(": ")[2].startswith("No verdict: 4 of 4 matrices moved beyond their error, but alpha")
    assert FARTHER not in found.conclusion
