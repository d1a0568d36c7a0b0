"""`peak` and `mid` against plain loops over the published rules (AlphaPruning, TempBalance), written out anew.

AlphaPruning's `net_esd_estimator` computes in torch float32; the loops here are the same steps in float64.
"""

from __future__ import annotations

import math

import numpy as np
import pytest

import tailwise as tw
from tailwise.spectrum.power_law import fit_tail


def peak_by_the_published_loop(eigenvalues) -> tuple[float, float, float]:
    """(α, D, λ_min) of `fix_fingers="xmin_peak"`, its inert lower bound included."""
    values = [float(x) for x in eigenvalues if x > 1e-5]
    logs = [math.log10(x) for x in values]
    width = (max(logs) - min(logs)) / 100
    counts = [0] * 100
    for log in logs:
        counts[min(int((log - min(logs)) / width), 99)] += 1
    peak = 10 ** (min(logs) + counts.index(max(counts)) * width)
    lowest, highest = math.log10(0.95 * peak), 1.5 * peak
    best = (math.inf, math.nan, math.nan)
    for i, smallest in enumerate(values[:-1]):
        if smallest < lowest:
            continue
        if smallest > highest:
            break
        alpha, distance = plain_fit(values[i:])
        if distance < best[0]:
            best = (distance, alpha, smallest)
    return best[1], best[0], best[2]


def plain_fit(tail: list[float]) -> tuple[float, float]:
    """α and one-sided D of a tail that begins at its first value."""
    n = len(tail)
    spread = sum(math.log(x / tail[0]) for x in tail)
    if spread <= 0:
        return math.inf, 1.0
    alpha = 1 + n / spread
    return alpha, max(abs(1 - (x / tail[0]) ** (1 - alpha) - j / n) for j, x in enumerate(tail))


def mid_by_the_published_loop(eigenvalues) -> tuple[float, float, float]:
    """(α, D, λ_min) of `fix_fingers="xmin_mid"` with `xmin_pos=2`."""
    values = [float(x) for x in eigenvalues if x > 1e-5]
    tail = values[int(len(values) / 2) :]
    return *plain_fit(tail), tail[0]


RULES = {"peak": peak_by_the_published_loop, "mid": mid_by_the_published_loop}


@pytest.mark.parametrize("rule", RULES)
def test_every_matrix_of_a_real_model_gets_the_published_rules_alpha(rule, pycode):
    audit = tw.audit(str(pycode), use_cache=False, baseline_replicas=2, estimator=rule)
    assert len(audit) > 50
    for layer in audit:
        alpha, distance, smallest = RULES[rule](layer.spectrum.eigenvalues)
        found = (layer.alpha, layer.ks_distance, layer.lambda_min)
        assert found == pytest.approx((alpha, distance, smallest), rel=1e-6), layer.row.name


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("seed", range(8))
def test_spectra_with_zeros_and_any_scale_get_the_published_rules_alpha(rule, seed):
    rng = np.random.default_rng(seed)
    values = np.sort(np.concatenate([np.zeros(seed * 3), 10 ** rng.normal(seed - 3, 0.5 + seed / 8, 60 + seed)]))
    fit = fit_tail(values, rule)
    assert (fit.alpha, fit.ks_distance, fit.lambda_min) == pytest.approx(RULES[rule](values), rel=1e-6)


def test_the_lower_bound_of_peak_is_inert_for_eigenvalues_of_a_small_scale():
    # log₁₀(0.95·peak) < 0 < λ for any peak below 1.05, so every value up to 1.5·peak competes.
    values = np.sort(0.1 * (np.random.default_rng(0).pareto(1.5, 400) + 1))
    counts, edges = np.histogram(np.log10(values), bins=100)
    peak = 10 ** edges[np.argmax(counts)]
    every = [plain_fit(values[i:].tolist()) for i in range(len(values) - 1) if values[i] <= 1.5 * peak]
    assert fit_tail(values, "peak").ks_distance == pytest.approx(min(d for _, d in every), rel=1e-9)
