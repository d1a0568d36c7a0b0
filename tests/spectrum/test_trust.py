"""The one notion of a trusted fit: against simulation, and in every judgement that uses it."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.audits.trusted import doubt, left_out, usable
from tailwise.judging.compare.ranking import rank
from tailwise.judging.compare.summary import model_numbers
from tailwise.judging.gates.checking import check
from tailwise.judging.gates.parse import parse_expectations
from tailwise.spectrum import trust
from tailwise.spectrum.power_law import fit_tail
from tailwise.spectrum.trust import N_MIN, doubt_of_tail, is_noise, largest_distance


def script():
    path = Path(__file__).parents[2] / "benchmarks" / "trusted_fits.py"
    spec = importlib.util.spec_from_file_location("trusted_fits", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("k", [10, 50, 300])
def test_the_table_is_that_of_its_script(k):
    assert script().quantile(k, draws=4000) == pytest.approx(trust._QUANTILES[k], abs=0.03)


def test_true_power_laws_of_any_size_are_trusted_in_95_of_100():
    rng = np.random.default_rng(3)
    for k in (10, 20, 40, 400):
        kept = 0
        for _ in range(400):
            values = np.sort(rng.pareto(1.7, k) + 1.0)
            fit = fit_tail(np.r_[np.full(60, 1e-3), values], "top", None)
            logs = np.log(values / values[0])
            alpha = 1 + k / logs.sum()
            distance = np.abs(-np.expm1((1 - alpha) * logs) - np.arange(k) / k).max()
            kept += doubt_of_tail(k, distance, searched=True) == ""
            assert fit.k  # the fit itself is of a fixed share
        assert 0.91 < kept / 400 < 0.985, k


def test_the_bound_falls_with_the_size_of_the_tail():
    bounds = [largest_distance(k) for k in (10, 20, 100, 1000, 10_000)]
    assert bounds == sorted(bounds, reverse=True)
    assert bounds[1] == pytest.approx(0.212, abs=0.002)  # D ≤ 0.1 would refuse most true tails of 20
    assert largest_distance(400) < 0.06  # and pass every lognormal of 400


def test_a_lognormal_of_four_hundred_is_mostly_refused():
    rng = np.random.default_rng(0)
    refused = 0
    for _ in range(200):
        logs = np.sort(np.abs(rng.standard_normal(400)))
        logs -= logs[0]
        alpha = 1 + 400 / logs.sum()
        distance = np.abs(-np.expm1((1 - alpha) * logs) - np.arange(400) / 400).max()
        refused += bool(doubt_of_tail(400, distance, searched=True))
    assert refused > 180


def test_what_is_not_known_is_no_reason_and_fixed_tails_claim_no_power_law():
    assert doubt_of_tail(50, None, searched=True) == ""
    assert doubt_of_tail(50, 0.4, searched=False) == ""
    assert "fewer than 10" in doubt_of_tail(N_MIN - 1, 0.01, searched=True)
    assert not is_noise(None, None, 512)
    assert is_noise(2.9, None, 512)
    assert not is_noise(3.1, None, 512)
    assert is_noise(100.0, 0.99, 8192)  # of two draws the sd means nothing
    assert not is_noise(0.0, 0.5, 8192)


def heavy(n, m, seed, exponent=2.5):
    """A matrix whose λ are those of a power law with α = `exponent`."""
    generator = torch.Generator().manual_seed(seed)
    left = torch.linalg.qr(torch.randn(n, m, generator=generator, dtype=torch.float64))[0]
    right = torch.linalg.qr(torch.randn(m, m, generator=generator, dtype=torch.float64))[0]
    shares = torch.linspace(0.5 / m, 1 - 0.5 / m, m, dtype=torch.float64)
    return left @ torch.diag(shares ** (-0.5 / (exponent - 1))) @ right.T


@pytest.fixture(scope="module")
def mixed():
    """Two heavy-tailed matrices, noise, one with three spikes on equal values, and zeros."""
    torch.manual_seed(0)
    basis = torch.linalg.qr(torch.randn(128, 96, dtype=torch.float64))[0]
    spiked = basis * torch.tensor([9.0, 6.0, 4.0, *[1.0] * 93], dtype=torch.float64)
    return tw.audit({
        "layers.0.mlp.up_proj.weight": heavy(160, 96, 1), "layers.1.mlp.up_proj.weight": heavy(160, 96, 2, 3.0),
        "layers.2.mlp.up_proj.weight": torch.randn(160, 96, dtype=torch.float64),
        "layers.3.mlp.up_proj.weight": spiked, "layers.4.mlp.up_proj.weight": torch.zeros(160, 96),
    }, use_cache=False)  # fmt: skip


def test_which_fits_are_trusted_and_why_not(mixed):
    rows = {row.block: row for row in mixed.rows}
    assert [bool(doubt(rows[block])) for block in range(5)] == [False, False, True, True, True]
    assert "noise of its shape" in doubt(rows[2]) or "D " in doubt(rows[2]) or "fewer" in doubt(rows[2])
    assert doubt(rows[4]) == "it has no exponent"
    assert left_out(mixed) == (3, 5)
    assert "over 2 of 5 fits" in repr(mixed)


def test_placeholders_are_shown_and_computed_with_nowhere(mixed):
    zeros = mixed["layers.4.mlp.up_proj"]
    assert zeros.alpha_hill == 10.0  # as its manual has it
    assert usable(zeros.row, "alpha_hill") is None
    hills = [layer.alpha_hill for layer in mixed if layer.row.block != 4 and "alpha_hill" not in layer.row.degenerate]
    assert mixed.summary()["alpha_hill"] == pytest.approx(np.mean(hills))
    assert model_numbers(mixed)["mean_alpha_hill"] == pytest.approx(np.mean(hills))
    assert model_numbers(mixed)["trusted_fits"] == 2


def test_means_are_over_trusted_fits_and_those_of_publications_over_all(mixed):
    numbers = model_numbers(mixed)
    alphas = [mixed[f"layers.{block}.mlp.up_proj"].alpha for block in (0, 1)]
    assert numbers["mean_alpha"] == pytest.approx(np.mean(alphas))
    every = [layer.alpha for layer in mixed if layer.row.status != "DEGENERATE" and layer.alpha is not None]
    assert numbers["mean_alpha_all"] == pytest.approx(np.mean(every))
    assert numbers["mean_alpha_all"] > numbers["mean_alpha"]


def test_rank_says_how_many_matrices_it_left_out(mixed):
    found = rank([mixed, mixed], by="alpha")
    assert any("3 of 5" in note for note in found.notes)
    assert not any("left out" in note for note in rank([mixed, mixed], by="log_norm").notes)


def test_rank_takes_smaller_matrices_where_it_is_told_to():
    small = tw.audit({"a.weight": heavy(60, 40, 3, 1.4), "b.weight": heavy(60, 40, 4, 1.4)}, use_cache=False)
    assert rank([small, small], by="alpha").models[0].values["mean_alpha"] is None
    assert rank([small, small], by="alpha", min_evals=40).models[0].values["mean_alpha"] is not None
    assert rank([small, small], by="alpha", min_evals=41).models[0].values["mean_alpha"] is None


@pytest.mark.parametrize(("expected", "passes"), [("alpha_hill < 11", False), ("alpha < 100", False)])
def test_a_gate_does_not_take_a_placeholder_for_a_number(expected, passes):
    zeros = tw.audit({"layers.0.mlp.up_proj.weight": np.zeros((96, 64))}, use_cache=False)
    found = check(zeros, parse_expectations(f'expect = ["{expected}"]'))
    assert found.passed == passes
    assert "has no alpha" in found.outcomes[0].violations[0].message


def test_a_gate_on_alpha_says_how_many_fits_it_did_not_look_at(mixed):
    found = check(mixed, parse_expectations('expect = ["alpha in [2, 4]"]')).outcomes[0]
    assert "alpha of 2 layers is no trusted fit" in found.message
    assert {violation.layer for violation in found.violations} == {"layers.4.mlp.up_proj"}


def test_compare_subtracts_no_placeholder(mixed):
    names = [f"layers.{block}.mlp.up_proj.weight" for block in range(5)]
    other = tw.audit({name: heavy(160 if i != 3 else 128, 96, 9 + i) for i, name in enumerate(names)}, use_cache=False)
    found = tw.compare(mixed, other)
    delta = next(layer for layer in found.layers if "layers.4" in layer.name).deltas["alpha_hill"]
    assert (delta.before, delta.change, delta.significant) == (None, None, None)
    assert any("alpha_hill of" in note and "one side alone" in note for note in found.notes)
    assert any("left out of the medians of roles" in note for note in found.notes)
