"""The likelihood ratios of tails beside those of the powerlaw package."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.recipe import Recipe
from tailwise.spectrum.metrics.facts import Spectra, measure
from tailwise.spectrum.other_laws import rivals
from tailwise.spectrum.spectrum import Spectrum


def drawn(kind: str, count: int = 600) -> np.ndarray:
    """Values above 1 of a law."""
    rng = np.random.default_rng(3)
    if kind == "power":
        return np.sort((1 - rng.random(count)) ** (-1 / 1.5))
    if kind == "exponential":
        return np.sort(1 + rng.exponential(2.0, count))
    values = np.exp(rng.normal(0.8, 0.7, 4 * count))
    return np.sort(values[values >= 1][:count])


def fitted(values: np.ndarray) -> float:
    return 1 + len(values) / float(np.log(values / values[0]).sum())


@pytest.mark.parametrize("kind", ["power", "exponential", "lognormal"])
@pytest.mark.parametrize("law", ["lognormal", "exponential"])
def test_the_ratios_are_those_of_the_powerlaw_package(kind, law):
    powerlaw = pytest.importorskip("powerlaw")
    values = drawn(kind)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        theirs = powerlaw.Fit(values, xmin=values[0], verbose=False)
        ratio, p = theirs.distribution_compare("power_law", law, normalized_ratio=True)
    mine = rivals(values, fitted(values))[law]
    if kind == "power" and law == "lognormal":  # its lognormal is the power law's limit; theirs stops short of it
        assert abs(mine.ratio) < 2
        return
    assert mine.ratio == pytest.approx(ratio, rel=0.02, abs=0.05)
    assert mine.p == pytest.approx(p, rel=0.1, abs=0.02)


def test_each_law_is_told_from_the_others():
    power, exponential, lognormal = (rivals(v, fitted(v)) for v in map(drawn, ("power", "exponential", "lognormal")))
    assert power["exponential"].ratio > 2
    assert power["truncated"].p > 0.05
    assert exponential["exponential"].ratio < -3
    assert exponential["truncated"].p < 1e-6
    assert lognormal["lognormal"].ratio < -3


def test_a_tail_too_short_for_a_ratio_has_none():
    assert rivals(np.arange(1.0, 9.0), 2.0) is None
    assert rivals(np.ones(20), 2.0) is None


def test_the_ratios_are_in_the_table_on_request():
    rng = np.random.default_rng(0)
    state = {"a.weight": rng.standard_normal((64, 96)).astype(np.float32)}
    assert "vuong_lognormal" not in tw.audit(state, workers=1).table().column_names
    row = tw.audit(state, workers=1, rivals=True)["a"].row
    assert row.metrics["vuong_lognormal_p"] <= 1
    assert row.metrics["alpha"] is not None
    named = measure(Spectra(Spectrum(np.sort(rng.pareto(1.5, 200)), 200, 200)), Recipe(metrics=("vuong_exponential",)))
    assert named["vuong_exponential"] > 1
