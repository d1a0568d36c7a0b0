"""Numbers with WeightWatcher's definition are WeightWatcher's, and where the definition differs, why it does.

The peer (0.7.7) runs live, on real weights: what agrees here is comparable with every α that was ever published.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import warnings
from collections.abc import Iterator
from fractions import Fraction
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import tailwise as tw
from tailwise.core.recipe import Recipe
from tailwise.spectrum.marchenko_pastur import fit_bulk, gaussian_spectrum
from tailwise.spectrum.metrics.bulk import detX_num, detX_val
from tailwise.spectrum.metrics.facts import Facts, Spectra
from tailwise.spectrum.power_law import TailOptions, fit_tail
from tailwise.spectrum.spectrum import Spectrum

SHARED = [
    "alpha", "D", "xmin", "sigma", "xmax", "num_pl_spikes", "alpha_weighted", "log_alpha_norm", "log_norm",
    "log_spectral_norm", "stable_rank", "entropy", "matrix_rank", "rank_loss", "detX_num", "detX_val",
    "norm", "spectral_norm", "lambda_max", "sv_max", "sv_min", "N", "M", "Q", "num_evals", "rf", "weak_rank_loss",
]  # fmt: skip
CLIPPED = ["alpha", "D", "xmin", "sigma", "xmax", "num_pl_spikes", "alpha_weighted", "log_alpha_norm"]


@contextlib.contextmanager
def the_peers_noise() -> Iterator[None]:
    """WeightWatcher prints, and warns through pandas and numpy; none of that is about this project."""
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def peer():
    """weightwatcher, imported quietly and without a display."""
    with pytest.MonkeyPatch.context() as patch, the_peers_noise():
        patch.setenv("MPLBACKEND", "Agg")
        weightwatcher = pytest.importorskip("weightwatcher")
        from weightwatcher import RMT_Util, WW_powerlaw
    logging.getLogger("weightwatcher").setLevel(logging.CRITICAL)

    def analyze(weights: dict[str, torch.Tensor], **options):
        with the_peers_noise():
            details = weightwatcher.WeightWatcher(model=weights).analyze(max_N=50_000, **options)
        return {row["longname"]: row for row in details.to_dict("records")}

    return SimpleNamespace(analyze=analyze, rmt=RMT_Util, fits=WW_powerlaw)


@pytest.fixture(scope="module", params=["bert", "pycode"])
def folder(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


def ours(folder, **settings) -> dict[str, dict]:
    table = tw.audit(str(folder), use_cache=False, baseline_replicas=2, **settings).weightwatcher()
    return {row["longname"]: row for row in table.to_dicts()}


def assert_same(mine: dict[str, dict], theirs: dict[str, dict], columns: list[str]) -> None:
    assert mine.keys() == theirs.keys()
    assert len(theirs) > 30
    for name, row in theirs.items():
        for column in columns:
            assert mine[name][column] == pytest.approx(row[column], rel=1e-6, abs=1e-9), (name, column)


def test_every_metric_with_weightwatchers_definition_has_weightwatchers_value(peer, folder, weights):
    assert_same(ours(folder), peer.analyze(weights, detX=True), SHARED)


def test_clipping_the_largest_eigenvalues_is_weightwatchers_clip_xmax(peer, folder, weights):
    theirs = peer.analyze(weights, fix_fingers="clip_xmax")
    assert sum(row["num_fingers"] > 0 for row in theirs.values()) > 3
    assert_same(ours(folder, estimator="ks_clip"), theirs, CLIPPED)


def test_dropped_eigenvalues_are_counted_where_weightwatchers_num_fingers_is_one_short(peer, pycode):
    theirs = peer.analyze(load_file(pycode / "model.safetensors"), fix_fingers="clip_xmax")
    audit = tw.audit(str(pycode), use_cache=False, baseline_replicas=2)
    for layer in audit:
        fit = fit_tail(layer.spectrum.eigenvalues, "ks_clip", TailOptions())
        assert np.count_nonzero(layer.spectrum.eigenvalues > fit.lambda_max) == fit.dropped
        assert theirs[layer.row.name]["num_fingers"] == max(fit.dropped - 1, 0)


def square_with_bulk(share_of_spikes: float) -> torch.Tensor:
    """200 × 200 Gaussian entries of σ = 0.03, and ten spikes that hold the given share of Σλ."""
    rng = np.random.default_rng(7)
    noise = 0.03 * rng.standard_normal((200, 200))
    left, _ = np.linalg.qr(rng.standard_normal((200, 10)))
    right, _ = np.linalg.qr(rng.standard_normal((200, 10)))
    energy = share_of_spikes / (1 - share_of_spikes) * np.sum(noise**2)
    return torch.tensor(noise + math.sqrt(energy / 10) * left @ right.T)


def test_sigma_of_a_square_bulk_is_found_where_weightwatchers_quarter_circle_overshoots(peer):
    layers = {f"share{int(100 * share)}.weight": square_with_bulk(share) for share in (0.5, 0.9)}
    theirs = peer.analyze(layers, mp_fit=True)
    overshoot = {}
    for name, weight in layers.items():
        row, values = theirs[name.removesuffix(".weight")], tw.esd(weight).eigenvalues
        assert fit_bulk(values, 200, 200).sigma == pytest.approx(0.03, rel=0.04)
        # Their fit runs on λ rescaled to Σλ = m, in which the σ of the bulk is this:
        truth = 0.03 * math.sqrt(200) * row["W_scale"]
        overshoot[name] = row["sigma_mp"] / truth
    assert overshoot["share50.weight"] > 1.2
    assert overshoot["share90.weight"] > 1.8


def test_weightwatchers_sigma_is_one_for_every_square_layer_of_a_real_model_and_ours_tells_them_apart(peer, bert):
    weights = load_file(bert / "model.safetensors")
    square = {name: w for name, w in weights.items() if "layer.0.attention" in name and w.shape == (384, 384)}
    theirs = peer.analyze(square, mp_fit=True)
    assert len(theirs) == 4
    ours_rescaled = []
    for name, row in theirs.items():
        bulk = fit_bulk(tw.esd(square[f"{name}.weight"]).eigenvalues, 384, 384)
        ours_rescaled.append(bulk.sigma * math.sqrt(384) * row["W_scale"])
        assert row["sigma_mp"] == pytest.approx(1, abs=0.03)  # of Σλ = m: as if all of the layer were noise
    assert max(ours_rescaled) < 0.7
    assert max(ours_rescaled) - min(ours_rescaled) > 0.1


def test_one_large_weight_is_one_trap_where_weightwatcher_adds_five_replicas_up(peer):
    weight = np.random.default_rng(3).standard_normal((300, 60))
    weight[3, 4] = 60.0
    theirs = peer.analyze({"layer.weight": torch.tensor(weight)}, randomize=True)
    assert theirs["layer"]["num_traps"] == 5
    assert tw.audit({"layer.weight": weight}, randomize=5)["layer"].num_traps == 1.0


@pytest.mark.parametrize("m", [3072, 4096])
def test_detx_of_large_layers_is_exact_where_the_plain_product_underflows(peer, m):
    spectrum = gaussian_spectrum(m, m, np.random.default_rng(0))
    exact = smallest_k_with_product_below_one(spectrum.eigenvalues)
    with the_peers_noise():
        theirs, _ = peer.rmt.detX_constraint(spectrum.eigenvalues)
    assert theirs != exact
    assert detX_num(spectrum) == exact
    assert detX_val(spectrum) == spectrum.eigenvalues[-exact]


def smallest_k_with_product_below_one(eigenvalues: np.ndarray) -> int:
    """By rational arithmetic, which neither rounds nor overflows."""
    values = [Fraction(value) for value in eigenvalues.tolist()]
    scale = Fraction(float(len(values) / sum(values)))
    product = Fraction(1)
    for k, value in enumerate(reversed(values), 1):
        product *= value * scale
        if product < 1:
            return k
    raise AssertionError("by AM-GM the whole product is at most 1")


def test_small_spectra_keep_the_plain_fit_where_weightwatcher_corrects_for_bias(peer):
    values = np.sort(np.random.default_rng(5).pareto(1.5, 15) + 1)
    with the_peers_noise():
        small = peer.fits.WWFit(values)
        plain = object.__new__(peer.fits.WWFit)
        plain.data, plain.N = values, len(values)
        plain.fit_power_law_standard()
    fit = fit_tail(values, "ks")
    best = int(np.argmin(plain.Ds))
    assert (fit.alpha, fit.ks_distance) == pytest.approx((plain.alphas[best], plain.Ds[best]), rel=1e-9)
    assert abs(small.alpha - fit.alpha) > 0.05
    assert fit.status == "FEW_EIGENVALUES"


def test_rand_distance_is_weightwatchers_jensen_shannon_distance(peer):
    rng = np.random.default_rng(0)
    one = Spectrum(np.sort(rng.pareto(1.2, 120)), 120, 200)
    other = Spectrum(np.sort(rng.random(120)), 120, 200)
    from tailwise.spectrum.metrics.randomized import rand_distance

    theirs = peer.rmt.jensen_shannon_distance(
        one.eigenvalues / one.eigenvalues.sum(), other.eigenvalues / other.eigenvalues.sum()
    )
    assert rand_distance(one, [other]) == pytest.approx(theirs, rel=1e-9)


def test_the_truncated_power_law_is_that_of_the_powerlaw_package():
    powerlaw = pytest.importorskip("powerlaw")
    rng = np.random.default_rng(1)
    draws = (1 - rng.random(4000)) ** (-1 / 1.2)
    tail = np.sort(draws[rng.random(4000) < np.exp(-0.05 * (draws - 1))])
    with the_peers_noise():
        theirs = powerlaw.Fit(tail, xmin=tail[0], verbose=False).truncated_power_law
        alpha, rate = theirs.alpha, theirs.Lambda
    spectrum = Spectrum(tail, len(tail), len(tail))
    recipe = Recipe(metrics=("alpha_truncated",), estimator="top", k_frac=1.0)
    mine = Facts(Spectra(spectrum), recipe).truncated
    assert (mine.alpha, mine.rate) == pytest.approx((alpha, rate), rel=1e-3)
    assert mine.gain > 0.003
