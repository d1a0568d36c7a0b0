"""Numbers that others published of ResNets trained on CIFAR-10, from their spectra (`tests/data/cifar_spectra.npz`).

The spectra are measured ones: λ of every 64 × 64 slice of the convolutions (`--conv slices`, all of 50 eigenvalues or
more) as float32, by model. `resnet20` to `resnet56` are Y. Idelbayev's (github.com/akamaster/pytorch_resnet_cifar10,
with the test errors of its README), `distiller_resnet20` is the dense one of Intel's Distiller (examples/ssl).
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

import tailwise as tw
from tailwise.judging.compare.ranking import rank
from tailwise.spectrum.power_law import fit_tail

SPECTRA = Path(__file__).resolve().parents[1] / "data" / "cifar_spectra.npz"
FAST = {"use_cache": False, "baseline_replicas": 2}
#: Model → (mean of α · log₁₀ λ_max, test error in %).
PUBLISHED = {
    "resnet20": (1.157, 8.27), "resnet32": (0.495, 7.37), "resnet44": (0.116, 6.90), "resnet56": (-0.129, 6.61),
}  # fmt: skip


@pytest.fixture(scope="module")
def spectra():
    """Model → (slices, 64) float64, ascending."""
    with np.load(SPECTRA) as kept:
        return {name: kept[name].astype(np.float64) for name in kept}


def fits(values, estimator):
    return [fit_tail(row, estimator) for row in values]


def weighted_alpha(values):
    """The mean of α · log₁₀ λ_max."""
    found = zip(fits(values, "ks"), values, strict=True)
    return float(np.mean([fit.alpha * np.log10(row[-1]) for fit, row in found]))


@pytest.mark.parametrize("name", PUBLISHED)
def test_weighted_alpha_of_the_family_is_the_published_one(spectra, name):
    assert weighted_alpha(spectra[name]) == pytest.approx(PUBLISHED[name][0], abs=5.5e-4)


def test_weighted_alpha_orders_the_family_as_accuracy_does(spectra):
    alphas = [weighted_alpha(spectra[name]) for name in PUBLISHED]
    assert kendalltau(alphas, [100 - error for _, error in PUBLISHED.values()]).statistic == pytest.approx(-1.0)


def test_audits_have_the_published_means_and_rank_them_so(spectra):
    audits = []
    for name in PUBLISHED:
        made = {f"conv.{index}.weight": np.diag(np.sqrt(row)) for index, row in enumerate(spectra[name])}
        audits.append(tw.audit(made, metrics=["alpha", "alpha_weighted", "alpha_hill"], **FAST))
    found = rank(audits, by="alpha_weighted")

    published = [model.values["mean_alpha_weighted_all"] for model in reversed(found.models)]
    assert published == pytest.approx([alpha for alpha, _ in PUBLISHED.values()], abs=5.5e-4)


def test_the_table_of_distiller_is_that_of_fits_truncated_at_the_largest_value(spectra):
    rows = spectra["distiller_resnet20"]
    plain, ended = (np.mean([fit.alpha for fit in fits(rows, name)]) for name in ("ks", "ks_truncated"))
    assert (plain, ended) == (pytest.approx(3.1867, abs=5e-5), pytest.approx(3.2900, abs=5e-5))


@pytest.mark.parametrize(("estimator", "ends"), [("ks", False), ("ks_truncated", True)])
def test_powerlaw_has_the_same_exponents(spectra, estimator, ends):
    powerlaw = pytest.importorskip("powerlaw")
    rows = spectra["distiller_resnet20"][::9]
    for row, ours in zip(rows, fits(rows, estimator), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            theirs = powerlaw.Fit(row[row > 1e-5], xmax=row[-1] if ends else None, verbose=False)
        assert (ours.alpha, ours.lambda_min) == pytest.approx((theirs.alpha, theirs.xmin), rel=1e-6)
