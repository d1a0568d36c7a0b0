"""Input without a tail, without values or without finite values ends in a row that says so, and harms no other."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.core.errors import UsageError
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import Spectra, measure
from tailwise.spectrum.power_law import ESTIMATORS, fit_tail
from tailwise.spectrum.solve import NotFiniteError, solve
from tailwise.spectrum.spectrum import Spectrum

RNG = np.random.default_rng(0)
GOOD = RNG.standard_normal((60, 50))
FAST = {"use_cache": False, "baseline_replicas": 2}


def one_row(weights, **settings):
    audit = tw.audit({"layer.weight": weights}, **{**FAST, **settings})
    return audit.rows[0]


@pytest.mark.parametrize("estimator", sorted(ESTIMATORS))
def test_equal_eigenvalues_are_degenerate_for_every_estimator(estimator):
    fit = fit_tail(np.full(80, 3.0), estimator)
    assert (fit.status, fit.alpha, fit.k) == ("DEGENERATE", 10.0, 0)
    assert np.isnan(fit.sigma)
    assert "no spread" in fit.remedy


def test_equal_eigenvalues_have_no_alpha_and_the_manuals_alpha_hill():
    row = one_row(np.eye(64))
    assert (row.status, row.metrics["alpha"], row.metrics["alpha_hill"]) == ("DEGENERATE", None, 10.0)
    assert row.metrics["alpha_z"] is None
    assert row.metrics["stable_rank"] == pytest.approx(64)
    assert "no spread" in row.reason


@pytest.mark.parametrize("m", [12, 64, 200])
def test_an_orthogonal_matrix_is_degenerate_although_its_eigenvalues_differ_in_the_last_digit(m):
    row = one_row(3.3 * np.linalg.qr(RNG.standard_normal((m, m)))[0])
    assert (row.status, row.metrics["alpha"], row.metrics["alpha_hill"]) == ("DEGENERATE", None, 10.0)


def test_a_zero_matrix_is_degenerate_and_has_no_number_that_is_not_one():
    row = one_row(np.zeros((40, 30)))
    assert row.status == "DEGENERATE"
    assert row.metrics["alpha_hill"] == 10.0
    for name in ("alpha", "log_norm", "log_spectral_norm", "stable_rank", "sigma_mp", "num_spikes"):
        assert row.metrics[name] is None, name
    assert (row.metrics["matrix_rank"], row.metrics["rank_loss"]) == (0, 30)


def test_a_zero_matrix_is_degenerate_also_where_its_permutations_are_asked_for():
    row = one_row(np.zeros((40, 30)), randomize=2)
    assert row.status == "DEGENERATE"
    assert row.metrics["ww_softrank"] is None


def test_a_rank_one_matrix_has_no_alpha():
    row = one_row(np.outer(RNG.standard_normal(60), RNG.standard_normal(50)))
    assert row.metrics["matrix_rank"] == 1
    assert (row.status, row.metrics["alpha"]) == ("DEGENERATE", None)


def test_a_single_row_is_listed_as_too_small_with_the_remedy():
    row = one_row(RNG.standard_normal((1, 500)))
    assert row.status == "TOO_SMALL"
    assert "min_evals" in row.reason
    assert not row.metrics


@pytest.mark.parametrize("shape", [(1, 40), (40, 1), (2, 40)])
def test_a_single_row_can_be_measured_where_it_is_asked_for(shape):
    weights = RNG.standard_normal(shape)
    row = one_row(weights, min_evals=1)
    assert row.status in ("DEGENERATE", "FEW_EIGENVALUES")
    assert 10 ** row.metrics["log_norm"] == pytest.approx(np.sum(weights**2))
    assert row.metrics["matrix_rank"] == min(shape)


def test_no_metric_is_ever_nan_or_minus_one_for_missing():
    spectra = [np.zeros(60), np.ones(60), np.append(np.zeros(59), 1.0), np.arange(60.0), 1e-300 * np.arange(1.0, 61)]
    for values in spectra:
        for name, value in measure(Spectra(Spectrum(values, 60, 60)), Recipe(baseline_replicas=2)).items():
            assert value is None or np.isfinite(value), name
            assert value != -1.0 or name.startswith(("log", "alpha_weighted", "detX_delta")), name


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(60, 50), (50, 60)])
def test_values_that_are_not_finite_are_counted_and_placed(kind, shape):
    weights = torch.from_numpy(RNG.standard_normal(shape)).to(kind)
    weights[7, 3] = float("nan")
    weights[7, 9] = float("nan")
    weights[40, 0] = float("inf")
    weights[41, 1] = -float("inf")
    audit = tw.audit({"a.weight": GOOD, "b.weight": weights, "c.weight": GOOD + 1}, **FAST)
    row = audit.rows[1]
    assert row.status == "NOT_FINITE"
    assert "2 NaN and 2 Inf" in row.reason
    assert "row 7, column 3" in row.reason
    assert not row.metrics
    assert [layer.row.name for layer in audit] == ["a", "c"]
    alone = tw.audit({"a.weight": GOOD, "c.weight": GOOD + 1}, **FAST)
    assert [layer.row.metrics for layer in audit] == [layer.row.metrics for layer in alone]
    assert [row.name for row in audit.unmeasured] == ["b"]


def test_the_solver_and_the_one_call_functions_refuse_what_is_not_finite():
    spoiled = GOOD.copy()
    spoiled[2, 5] = np.inf
    with pytest.raises(NotFiniteError) as caught:
        solve(torch.from_numpy(spoiled))
    assert (caught.value.nans, caught.value.infs, caught.value.where) == (0, 1, (2, 5))
    with pytest.raises(UsageError, match="0 NaN and 1 Inf"):
        tw.alpha_hill(spoiled)


def test_a_nan_far_down_a_matrix_of_many_blocks_is_found():
    weights = torch.zeros(9000, 300, dtype=torch.float32)
    weights[8765, 4] = float("nan")
    with pytest.raises(NotFiniteError, match="row 8765, column 4"):
        solve(weights)


@pytest.mark.parametrize("scale", [1e-150, 1e-80, 1e80, 1e150])
def test_values_near_the_limits_of_float64_give_the_shape_numbers_of_the_unscaled_matrix(scale):
    near, far = one_row(GOOD), one_row(GOOD * scale)
    assert far.status == near.status
    for name in ("alpha_hill", "stable_rank", "matrix_rank", "effective_rank", "singular_entropy", "num_spikes"):
        assert far.metrics[name] == pytest.approx(near.metrics[name], rel=1e-6), name
    shift = 2 * np.log10(scale)
    assert far.metrics["log_norm"] == pytest.approx(near.metrics["log_norm"] + shift, rel=1e-9)


@pytest.mark.parametrize(
    ("scale", "precision"), [(1e160, "float64"), (1e-200, "float64"), (1e-310, "float64"), (1e150, "float32")]
)
def test_values_beyond_what_the_eigenvalues_can_hold_end_in_a_row_with_a_remedy(scale, precision):
    row = one_row(GOOD * scale, precision=precision)
    assert row.status == "UNSUPPORTED" or row.metrics["matrix_rank"] == 50, row.reason


STORED = {
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F32": torch.float32,
    "F64": torch.float64,
}


@pytest.mark.parametrize("code", STORED)
@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (64, 64)])
def test_narrow_types_give_the_float64_numbers_of_the_values_they_hold(code, shape):
    stored = torch.from_numpy(RNG.standard_normal(shape)).to(STORED[code])
    narrow, wide = one_row(stored, randomize=1), one_row(stored.to(torch.float64), randomize=1)
    assert narrow.dtype == code
    assert narrow.metrics.keys() == wide.metrics.keys()
    # What rounding to the stored type leaves is no rank, and the entropy is divided by the rank's logarithm.
    lost = narrow.metrics["rank_loss"] - wide.metrics["rank_loss"]
    assert lost >= 0
    assert narrow.metrics["matrix_rank"] == wide.metrics["matrix_rank"] - lost
    same = wide.metrics.keys() - ({"rank_loss", "matrix_rank", "matrix_entropy"} if lost else set())
    for name in same:
        assert narrow.metrics[name] == pytest.approx(wide.metrics[name], rel=1e-12), name


def test_integers_are_codes_and_not_weights():
    row = one_row(RNG.integers(0, 9, (40, 30)))
    assert row.status == "NOT_A_MATRIX"
    assert not row.metrics


def test_a_model_without_a_matrix_is_an_audit_that_lists_and_measures_nothing():
    audit = tw.audit({"norm.weight": np.ones(30), "layer.bias": np.ones(3)}, **FAST)
    assert (len(audit), len(audit.unmeasured), audit.summary()) == (0, 2, {})
    assert (len(audit.table()), len(audit.table(unmeasured=True)), len(audit.weightwatcher())) == (0, 2, 0)
    assert "0 matrices" in repr(audit)


def test_nothing_to_read_is_an_error_of_its_own():
    with pytest.raises(tw.UnreadableError, match="holds no tensors"):
        tw.audit({})
