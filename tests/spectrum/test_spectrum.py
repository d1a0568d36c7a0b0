"""The spectrum and the recipe as values: checked when made, never changed, the same wherever they come from."""

from __future__ import annotations

import pickle
from copy import deepcopy

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.errors import TailwiseError, UnreadableError, UsageError
from tailwise.core.recipe import Recipe, digest_of
from tailwise.spectrum.power_law import ESTIMATORS, fit_tail
from tailwise.spectrum.spectrum import Spectrum, pool


@pytest.mark.parametrize(
    "eigenvalues",
    [[2.0, 1.0], [-1.0, 1.0], [1.0, np.nan], [1.0, np.inf], [1.0], [1.0, 2.0, 3.0], [[1.0, 2.0]]],
)
def test_what_is_no_spectrum_is_refused(eigenvalues):
    with pytest.raises(UsageError):
        Spectrum(np.array(eigenvalues), 2, 5)


def test_a_spectrum_cannot_be_changed_behind_the_back_of_its_caches():
    spectrum = Spectrum(np.array([1.0, 4.0]), 2, 5)
    with pytest.raises(ValueError, match="read-only"):
        spectrum.eigenvalues[0] = 3.0
    assert spectrum.singular_values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "cols", "n", "m", "Q"), [(30, 20, 30, 20, 1.5), (20, 30, 30, 20, 1.5), (7, 7, 7, 7, 1)]
)
def test_long_and_short_side_do_not_depend_on_orientation(rows, cols, n, m, Q):
    spectrum = Spectrum(np.ones(m), rows, cols)
    assert (spectrum.n, spectrum.m, spectrum.Q) == (n, m, Q)


def test_spectra_fits_rows_and_layers_travel_between_processes():
    audit = tw.audit({"layer.weight": np.diag(np.arange(1.0, 61))}, use_cache=False, randomize=1)
    for copied in (pickle.loads(pickle.dumps(audit)), deepcopy(audit)):
        assert copied.rows == audit.rows
        assert copied["layer"].spectrum.eigenvalues.tobytes() == audit["layer"].spectrum.eigenvalues.tobytes()
        assert copied["layer"].alpha == audit["layer"].alpha


def test_pooling_one_spectrum_is_that_spectrum_and_errors_do_not_shrink():
    one, other = (Spectrum(np.array([1.0, 2.0]), 2, 3, error_bound=bound) for bound in (1e-9, 1e-7))
    assert pool([one]) is one
    assert pool([one, other]).error_bound == 1e-7


def test_an_unknown_estimator_is_answered_with_near_ones():
    with pytest.raises(UsageError, match="no estimator named 'top_outsid'") as caught:
        fit_tail(np.arange(1.0, 9), "top_outsid")
    assert "top_outside" in caught.value.fix


@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_fits_of_next_to_nothing_are_values_and_not_exceptions(estimator, count):
    fit = fit_tail(np.arange(1.0, count + 1), estimator)
    assert fit.status in ("DEGENERATE", "FEW_EIGENVALUES")
    assert fit.ok == (fit.k >= 2)


@pytest.mark.parametrize(
    "weights", [np.ones(5), np.float64(3.0), np.ones((0, 4)), np.full((3, 3), np.nan), np.full((3, 3), -np.inf)]
)
def test_what_is_no_finite_matrix_is_refused_by_the_one_call_functions(weights):
    for function in (tw.esd, tw.alpha_hill, tw.singular_entropy, tw.stable_rank):
        with pytest.raises(UsageError):
            function(weights)


def test_a_matrix_whose_eigenvalues_leave_float64_is_refused_by_the_one_call_functions():
    with pytest.raises(UsageError, match="float64"):
        tw.stable_rank(1e200 * np.eye(20))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_a_tail_fraction_outside_0_to_1_is_refused(fraction):
    with pytest.raises(UsageError, match="tail_fraction"):
        tw.alpha_hill(np.eye(9), fraction)


def test_one_call_functions_take_a_spectrum_as_it_is():
    spectrum = tw.esd(np.random.default_rng(0).standard_normal((40, 30)))
    assert tw.esd(spectrum) is spectrum
    assert tw.alpha_hill(spectrum) == fit_tail(spectrum.eigenvalues, "top").alpha


def test_a_recipe_is_a_value_that_json_can_hold():
    recipe = Recipe(estimator="mid", metrics=("alpha",), seed=3)
    stored = recipe.to_json()
    assert Recipe(**{**stored, "metrics": tuple(stored["metrics"])}) == recipe
    assert hash(recipe) == hash(recipe.replace())
    assert recipe.replace(seed=4) != recipe
    assert Recipe(estimator="farms") == Recipe(estimator="farms:mid")


def test_digests_do_not_depend_on_the_order_of_keys():
    assert digest_of({"a": 1, "b": [2]}) == digest_of({"b": [2], "a": 1})
    assert digest_of({"a": 1, "b": [2]}) != digest_of({"a": 1, "b": [3]})


@pytest.mark.parametrize(("kind", "code"), [(TailwiseError, 1), (UsageError, 2), (UnreadableError, 3)])
def test_errors_say_what_where_and_what_to_do_and_survive_pickling(kind, code):
    error = pickle.loads(pickle.dumps(kind("it broke", where="layer 3", fix="mend it")))
    assert type(error) is kind
    assert (error.what, error.where, error.fix, error.exit_code) == ("it broke", "layer 3", "mend it", code)
    assert str(error) == "layer 3: it broke\n  → mend it"
