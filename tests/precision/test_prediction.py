"""Rank correlations within roles, and their intervals."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from tailwise.audits.precision.prediction import predictions, stratified_spearman
from tailwise.audits.precision.study import LayerStudy, PrecisionStudy, Reading


def test_one_stratum_is_spearmans_rho() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((2, 40))
    rho, low, high, p, n = stratified_spearman(x, y, [""] * 40)
    assert rho == pytest.approx(spearmanr(x, y).statistic)
    assert low is not None
    assert high is not None
    assert low < rho < high
    assert p == pytest.approx(spearmanr(x, y).pvalue, abs=0.03)
    assert n == 40


def test_a_difference_between_roles_is_not_a_correlation_within_them() -> None:
    rng = np.random.default_rng(1)
    roles = np.repeat(["q", "v", "up"], 20)
    offset = np.repeat([0.0, 10.0, 20.0], 20)
    x, y = offset + rng.standard_normal(60), offset + rng.standard_normal(60)
    pooled, *_ = stratified_spearman(x, y, [""] * 60)
    within, low, high, *_ = stratified_spearman(x, y, list(roles))
    assert pooled > 0.8
    assert low < 0 < high
    assert abs(within) < 0.4


def test_opposite_signs_between_and_within_roles_are_told_apart() -> None:
    inside = np.tile(np.arange(8.0), 4)
    offset = np.repeat(np.arange(4.0) * 100, 8)
    pooled, *_ = stratified_spearman(offset + inside, offset - inside, [""] * 32)
    within, *_ = stratified_spearman(offset + inside, offset - inside, list(np.repeat(list("abcd"), 8)))
    assert pooled > 0.8
    assert within == pytest.approx(-1)


def test_the_interval_covers_the_truth_at_its_rate() -> None:
    rng = np.random.default_rng(2)
    roles = [str(i // 8) for i in range(56)]
    covered = 0
    for _ in range(400):
        x, y = rng.standard_normal((2, 56))
        _, low, high, *_ = stratified_spearman(x, y, roles)
        covered += low <= 0 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_few_layers_have_no_interval_and_constant_ones_no_correlation() -> None:
    assert stratified_spearman(np.arange(4.0), np.arange(4.0), [""] * 4) == (1.0, None, None, None, 4)
    assert stratified_spearman(np.ones(20), np.arange(20.0), [""] * 20)[0] is None
    assert stratified_spearman(np.arange(4.0), np.arange(4.0), list("abcd")) == (None, None, None, None, 0)


def _layer(index: int, alpha: float | None, error: float, block: int | None = None) -> LayerStudy:
    reading = Reading("int4", 4.125, alpha=alpha, relative_error=error, overlap=1 - error)
    exact = Reading("bf16", 16.0, alpha=alpha, relative_error=0.0, overlap=1.0)
    return LayerStudy(f"layers.{index}.mlp.up_proj", "mlp_up", index if block is None else block, 8, 8, 64, "BF16",
                      alpha=alpha, readings={"bf16": exact, "int4": reading})  # fmt: skip


def test_formats_that_change_nothing_are_not_predicted() -> None:
    layers = tuple(_layer(i, 2 + i / 10, 0.1 + i / 100) for i in range(12))
    found = predictions(PrecisionStudy("m", ("bf16", "int4"), {}, layers, {}))
    assert {item.format for item in found} == {"int4"}
    assert {(item.predictor, item.scope) for item in found} == {
        ("alpha", "pooled"), ("alpha", "within roles"), ("depth", "pooled"), ("depth", "within roles"),
    }  # fmt: skip
    assert all(item.rho == pytest.approx(1) for item in found if item.measure in ("relative_error", "overlap"))
    assert all(item.seen for item in found if item.rho is not None)


def test_layers_without_alpha_or_outside_blocks_take_no_part() -> None:
    layers = [_layer(i, 2 + i / 10, 0.1 + i / 100) for i in range(10)]
    head = LayerStudy("lm_head", "lm_head", None, 8, 8, 64, "BF16", alpha=9.0, readings=layers[0].readings)
    found = predictions(PrecisionStudy("m", ("int4",), {}, (*layers, _layer(10, None, 0.5), head), {}))
    assert {item.n for item in found} == {10}
