"""Bounds and identities of the metrics that hold for every spectrum."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.bulk import detX_delta, detX_num, detX_val
from tailwise.spectrum.metrics.facts import Facts, Spectra, measure
from tailwise.spectrum.metrics.randomized import one_minus_rd, rand_distance, ww_maxdist, ww_softrank
from tailwise.spectrum.power_law import fit_tail
from tailwise.spectrum.spectrum import Spectrum

LAW = settings(deadline=None, derandomize=True, max_examples=120)
DUST = 1e-12


@st.composite
def spectra(draw) -> Spectrum:
    """Any scale and shape, with zeros, ties and collapse."""
    rng = np.random.default_rng(draw(st.integers(0, 10**6)))
    m = draw(st.integers(2, 80))
    kind = draw(st.sampled_from(["flat-ish", "lognormal", "pareto", "collapsed", "ties"]))
    values = {
        "flat-ish": lambda: 1 + 1e-3 * rng.random(m),
        "lognormal": lambda: rng.lognormal(0, 3, m),
        "pareto": lambda: rng.pareto(0.7, m) + 1,
        "collapsed": lambda: np.append(1e-9 * rng.random(m - 1), 1e3),
        "ties": lambda: rng.integers(1, 4, m).astype(float),
    }[kind]()
    values[: draw(st.integers(0, m - 1))] = 0.0
    return Spectrum(np.sort(values) * 10.0 ** draw(st.integers(-6, 6)), m, m + draw(st.integers(0, 40)))


NAMED = Recipe(
    metrics=(
        "alpha", "lambda_min", "num_pl_spikes", "log_norm", "log_spectral_norm", "alpha_weighted", "log_alpha_norm",
        "stable_rank", "matrix_rank", "rank_loss", "effective_rank", "matrix_entropy", "singular_entropy",
        "singular_entropy_normalized", "detX_num", "detX_val", "detX_delta",
    )
)  # fmt: skip


def values_of(spectrum: Spectrum) -> dict[str, float | None]:
    return measure(Spectra(spectrum), NAMED)


@LAW
@given(spectra())
def test_entropies_and_ranks_stay_in_their_ranges(spectrum):
    m, found = len(spectrum.eigenvalues), values_of(spectrum)
    assert -DUST <= found["singular_entropy"] <= math.log(m) + DUST
    assert -DUST <= found["singular_entropy_normalized"] <= 1 + DUST
    assert 1 - DUST <= found["effective_rank"] <= found["matrix_rank"] * (1 + 1e-9)
    assert 1 - DUST <= found["stable_rank"] <= found["matrix_rank"] * (1 + DUST)
    assert found["matrix_rank"] + found["rank_loss"] == m
    assert found["effective_rank"] == pytest.approx(m * math.exp(-found["singular_entropy"]), rel=1e-9)
    assert found["matrix_rank"] == np.count_nonzero(spectrum.eigenvalues)
    if found["matrix_rank"] > 1:
        assert 0 <= found["matrix_entropy"] <= 1 + DUST


@LAW
@given(spectra())
def test_norms_are_those_of_the_eigenvalues(spectrum):
    found, values = values_of(spectrum), spectrum.eigenvalues
    assert 10 ** found["log_norm"] == pytest.approx(values.sum(), rel=1e-9)
    assert 10 ** found["log_spectral_norm"] == pytest.approx(values[-1], rel=1e-9)
    if found["alpha"] is not None:
        assert found["alpha_weighted"] == pytest.approx(found["alpha"] * math.log10(values[-1]), rel=1e-9, abs=1e-9)
        positive = np.log(values[values > 0]) * found["alpha"]
        assert found["log_alpha_norm"] == pytest.approx(
            np.logaddexp.reduce(positive) / math.log(10), rel=1e-9, abs=1e-9
        )
        assert found["num_pl_spikes"] == np.count_nonzero(values >= found["lambda_min"])
        assert found["detX_delta"] == found["num_pl_spikes"] - found["detX_num"]


@LAW
@given(spectra())
def test_detx_is_the_first_product_of_the_largest_below_one(spectrum):
    values = spectrum.eigenvalues[::-1]
    with np.errstate(divide="ignore"):
        logs = np.cumsum(np.log(values / values.sum() * len(values)))
    k = int(detX_num(spectrum))
    assert detX_val(spectrum) == values[k - 1]
    assert np.all(logs[: k - 1] > -1e-9)
    assert logs[k - 1] < 1e-9 or k == len(values)


@pytest.mark.parametrize("m", [2, 7, 64, 1000])
@pytest.mark.parametrize("value", [1.0, 0.5, 1024.0])
def test_detx_of_a_flat_spectrum_is_all_of_it(m, value):
    spectrum = Spectrum(np.full(m, value), m, m)
    assert detX_num(spectrum) == m
    assert detX_val(spectrum) == value


@pytest.mark.parametrize("value", [0.1, 1 / 3, 0.7, 1.1, 3.3, 1e-3])
def test_detx_of_a_flat_spectrum_is_all_of_it_at_any_scale(value):
    found = {m: detX_num(Spectrum(np.full(m, value), m, m)) for m in range(2, 400)}
    assert found == {m: m for m in range(2, 400)}


def test_detx_delta_of_a_tail_that_begins_at_the_crossing_is_zero():
    spectrum = Spectrum(np.sort(np.random.default_rng(0).pareto(1.0, 200) + 1), 200, 200)
    fit = fit_tail(spectrum.eigenvalues, "ks")
    moved = detX_delta(spectrum, spectrum, fit)
    assert moved == np.count_nonzero(spectrum.eigenvalues >= fit.lambda_min) - detX_num(spectrum)


@pytest.mark.parametrize("m", [2, 5, 64, 999])
def test_orthogonal_matrices_have_entropy_zero_and_full_ranks(m):
    found = values_of(Spectrum(np.full(m, 2.5), m, m))
    assert found["singular_entropy"] == pytest.approx(0, abs=DUST)
    assert found["singular_entropy_normalized"] == pytest.approx(0, abs=DUST)
    assert (found["effective_rank"], found["stable_rank"]) == pytest.approx((m, m))
    assert found["matrix_entropy"] == pytest.approx(1)
    assert (found["matrix_rank"], found["rank_loss"]) == (m, 0)


def test_a_rank_one_matrix_has_the_largest_entropy_and_rank_one():
    found = values_of(Spectrum(np.append(np.zeros(30), 4.0), 31, 50))
    assert found["singular_entropy"] == pytest.approx(math.log(31))
    assert found["singular_entropy_normalized"] == pytest.approx(1)
    assert found["effective_rank"] == found["stable_rank"] == found["matrix_rank"] == 1
    assert found["matrix_entropy"] is None


@LAW
@given(spectra(), st.integers(0, 10**6))
def test_rand_distance_is_a_bounded_symmetric_distance(spectrum, seed):
    m = len(spectrum.eigenvalues)
    other = Spectrum(np.sort(np.random.default_rng(seed).pareto(1.0, m)), spectrum.rows, spectrum.cols)
    forth, back = rand_distance(spectrum, [other]), rand_distance(other, [spectrum])
    assert 0 <= forth <= math.sqrt(math.log(2)) + DUST
    assert forth == pytest.approx(back, abs=1e-9)
    assert rand_distance(spectrum, [spectrum]) == 0
    assert one_minus_rd(spectrum, [other]) == 1 - forth


def test_rand_distance_of_spectra_without_overlap_is_its_upper_bound():
    # As rank-ordered vectors they never overlap; ascending spectra come close where one is collapsed, one flat.
    flat, collapsed = Spectrum(np.ones(5000), 5000, 5000), Spectrum(np.append(np.zeros(4999), 1.0), 5000, 5000)
    assert math.sqrt(math.log(2)) - 0.01 < rand_distance(flat, [collapsed]) <= math.sqrt(math.log(2))


def test_softrank_and_maxdist_read_the_same_permutation():
    spectrum = Spectrum(np.array([1.0, 2.0, 8.0]), 3, 3)
    permuted = [Spectrum(np.array([1.0, 2.0, 4.0]), 3, 3), Spectrum(np.array([1.0, 2.0, 16.0]), 3, 3)]
    assert ww_softrank(spectrum, permuted) == 4 / 8
    assert ww_maxdist(spectrum, permuted) == 8 - 4
    assert ww_softrank(spectrum, permuted) * 8 + ww_maxdist(spectrum, permuted) == 8


def test_alpha_z_counts_the_baselines_standard_deviations_below_its_mean():
    spectrum = Spectrum(np.sort(np.random.default_rng(0).pareto(1.5, 100) + 1), 100, 100)

    def baseline(*_):
        return {"alpha": (5.0, 0.5), "alpha_hill": (6.0, 0.25), "singular_entropy": (0.1, 0.01)}

    found = measure(Spectra(spectrum), Recipe(), baseline)
    assert found["alpha_z"] == pytest.approx((5.0 - found["alpha"]) / 0.5)
    assert found["alpha_hill_z"] == pytest.approx((6.0 - found["alpha_hill"]) / 0.25)
    assert found["singular_entropy_z"] == pytest.approx((found["singular_entropy"] - 0.1) / 0.01)


def test_each_fit_is_computed_once_and_only_if_asked_for():
    facts = Facts(Spectra(Spectrum(np.arange(1.0, 61.0), 60, 60)), Recipe())
    assert facts.tail is facts.tail
    assert "bulk" not in vars(facts)
    assert facts.bulk is facts.bulk
    assert "bulk" in vars(facts)
