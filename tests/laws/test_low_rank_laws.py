"""Rounding errors of eigenvalues that are zero never become numbers: LoRA updates and collapsed layers are low-rank."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import Spectra, measure
from tailwise.spectrum.solve import solve
from tailwise.spectrum.solvers.gram import DenseMatrix
from tailwise.spectrum.spectrum import Spectrum

RECIPE = Recipe(baseline_replicas=2)
RANKS = [1, 2, 5, 14]


def factors(rank: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(rank)
    return rng.standard_normal((60, rank)), rng.standard_normal((rank, 50))


def numbers(spectrum: Spectrum) -> dict[str, float | None]:
    return measure(Spectra(spectrum), RECIPE)


@pytest.mark.parametrize("rank", RANKS)
def test_a_low_rank_matrix_has_the_same_numbers_from_its_factors_and_from_its_product(rank):
    left, right = factors(rank)

    class Product(DenseMatrix):
        factors = (torch.from_numpy(left), torch.from_numpy(right))

    dense = torch.from_numpy(left @ right)
    one, other = numbers(solve(Product(dense))), numbers(solve(dense))
    assert {name for name in one if one[name] is None} == {name for name in other if other[name] is None}
    defined = [name for name in one if one[name] is not None]
    assert [other[name] for name in defined] == pytest.approx([one[name] for name in defined], rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("rank", RANKS)
def test_a_matrix_of_less_than_half_its_rank_has_no_bulk_and_no_spikes(rank):
    left, right = factors(rank)
    found = numbers(solve(torch.from_numpy(left @ right)))
    assert found["matrix_rank"] == rank
    for name in ("sigma_mp", "lambda_plus", "num_spikes", "mp_softrank", "mp_distance"):
        assert found[name] is None, name


@pytest.mark.parametrize("rank", [3, 20, 49])
def test_fewer_than_fifty_eigenvalues_that_are_not_zero_give_no_verdict(rank):
    values = np.append(np.zeros(200), np.random.default_rng(0).pareto(1.5, rank) + 1)
    fit = tw.fit_tail(np.sort(values), "ks")
    assert fit.status == "FEW_EIGENVALUES"


def test_spikes_above_the_edge_are_counted_or_there_is_no_bulk():
    from tailwise.spectrum.marchenko_pastur import fit_bulk

    values = np.array([0.0, 0, 0, 0, 1e-3, 1e-3, 1.1e-3, 1e6, 2e6, 3e6])
    bulk = fit_bulk(values, 10, 10)
    assert bulk is None or bulk.num_spikes == np.count_nonzero(values > bulk.spike_edge)


@pytest.mark.parametrize("dead", [5, 30, 70])
def test_a_matrix_with_zero_columns_has_the_rank_and_the_norms_of_the_rest(dead):
    rest = np.random.default_rng(dead).standard_normal((200, 100 - dead))
    whole = numbers(solve(torch.from_numpy(np.hstack([np.zeros((200, dead)), rest]))))
    part = numbers(solve(torch.from_numpy(rest)))
    for name in ("alpha", "lambda_min", "matrix_rank", "stable_rank", "effective_rank", "log_norm", "matrix_entropy"):
        assert whole[name] == pytest.approx(part[name], rel=1e-9), name
    assert whole["rank_loss"] == dead
    assert whole["singular_entropy"] == pytest.approx(part["singular_entropy"] + np.log(100 / (100 - dead)))
