"""W − W₀ against numpy, which holds both matrices whole."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.judging.compare.difference import DifferenceOptions, difference

ONE = DifferenceOptions(directions=5, workers=1)


def oracle(old: np.ndarray, new: np.ndarray, k: int) -> dict[str, float]:
    change = new - old
    sigma = np.linalg.svd(change, compute_uv=False)
    shares = sigma / sigma.sum()
    left0, _, right0 = np.linalg.svd(old)
    left, _, right = np.linalg.svd(new)
    cross = np.linalg.norm(old @ new.T) ** 2
    return {
        "relative_change": np.linalg.norm(change) / np.linalg.norm(old),
        "change_stable_rank": (sigma**2).sum() / sigma[0] ** 2,
        "change_effective_rank": np.exp(-(shares * np.log(shares)).sum()),
        "change_rank": np.linalg.matrix_rank(change),
        "cka": cross / np.linalg.norm(old @ old.T) / np.linalg.norm(new @ new.T),
        "overlap_output": np.linalg.norm(left0[:, :k].T @ left[:, :k]) ** 2 / k,
        "overlap_input": np.linalg.norm(right0[:k] @ right[:k].T) ** 2 / k,
        "directions": k,
    }


@pytest.mark.parametrize("shape", [(90, 40), (40, 90), (64, 64)], ids=["tall", "wide", "square"])
@pytest.mark.parametrize("dtypes", [("float32", "float32"), ("float64", "float32")], ids=["same", "mixed"])
def test_every_number_is_numpys(shape, dtypes, make):
    rng = np.random.default_rng(0)
    old = (make.heavy(1, *shape) if shape[0] >= shape[1] else make.heavy(1, *shape[::-1]).T).astype(dtypes[0])
    new = (old + 0.02 * rng.standard_normal(shape)).astype(dtypes[1])
    models = {"a.weight": old}, {"a.weight": new}
    audits = [make.audited(model) for model in models]
    found = difference(*audits, models=models, options=ONE)
    (layer,) = found.comparison.layers
    expected = oracle(old.astype(np.float64), new.astype(np.float64), 5)
    for name, value in expected.items():
        assert layer.weights[name] == pytest.approx(value, rel=1e-7), name
    sigma = np.linalg.svd(new.astype(np.float64) - old, compute_uv=False)
    np.testing.assert_allclose(found.audit["a"].spectrum.eigenvalues, sigma[::-1] ** 2, rtol=1e-7, atol=1e-15)


def test_a_low_rank_update_has_its_rank(make):
    rng = np.random.default_rng(0)
    old = rng.standard_normal((120, 80))
    new = old + rng.standard_normal((120, 3)) @ rng.standard_normal((3, 80)) / 10
    models = {"a.weight": old}, {"a.weight": new}
    found = difference(*[make.audited(model) for model in models], models=models, options=ONE)
    weights = found.comparison.layers[0].weights
    # Rounding of W itself leaves singular values of the size ε‖W‖ in the difference.
    assert np.count_nonzero(found.audit["a"].spectrum.eigenvalues > 1e-20) == 3
    assert weights["change_stable_rank"] < 3.001


def test_what_is_identical_is_not_read_and_has_no_difference(make):
    weights = make.noise(1, blocks=1)
    audit = make.audited(weights)
    found = difference(audit, audit, models=(weights, weights), options=ONE)
    for layer in found.comparison.layers:
        assert layer.weights == {"relative_change": 0.0, "cka": 1.0, "overlap_input": 1.0, "overlap_output": 1.0}
    assert [layer.row.status for layer in found.audit] == ["DEGENERATE", "DEGENERATE"]


def test_rotated_outputs_keep_cka_and_the_input_side(make):
    rng = np.random.default_rng(0)
    old = make.heavy(1, 64, 48)
    turn, _ = np.linalg.qr(rng.standard_normal((64, 64)))
    models = {"a.weight": old}, {"a.weight": turn @ old}
    found = difference(*[make.audited(model) for model in models], models=models, options=ONE)
    weights = found.comparison.layers[0].weights
    assert weights["cka"] == pytest.approx(1)
    assert weights["overlap_input"] == pytest.approx(1)
    assert weights["overlap_output"] < 0.5


def test_pooled_convolutions_and_renames_are_paired(make):
    rng = np.random.default_rng(0)
    old = {"model.layers.0.conv.weight": rng.standard_normal((16, 12, 3, 3)).astype(np.float32)}
    new = {"m.model.layers.0.conv.weight": old["model.layers.0.conv.weight"] * np.float32(1.5)}
    audits = [make.audited(model, conv="pooled") for model in (old, new)]
    found = difference(*audits, models=(old, new), options=ONE)
    weights = found.comparison.layers[0].weights
    assert weights["relative_change"] == pytest.approx(0.5)
    assert weights["cka"] == pytest.approx(1)
    assert len(found.audit["m.model.layers.0.conv"].spectrum.eigenvalues) == 9 * 12


def test_checkpoints_are_found_where_the_audits_say_and_must_be_the_same(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    generator = torch.Generator().manual_seed(0)
    save_file({"a.weight": torch.randn(40, 30, generator=generator)}, old)
    save_file({"a.weight": torch.randn(40, 30, generator=generator).bfloat16()}, new)
    audits = [tw.audit(path, use_cache=False, baseline_replicas=2) for path in (old, new)]
    assert difference(*audits, options=ONE).comparison.layers[0].weights["relative_change"] > 1
    save_file({"a.weight": torch.randn(40, 30, generator=generator).bfloat16()}, new)
    stale = difference(*audits, options=ONE)
    assert stale.comparison.layers[0].weights == {}
    assert any("changed since it was audited" in note for note in stale.comparison.notes)
    new.unlink()
    with pytest.raises(tw.UnreadableError, match="not at hand"):
        difference(*audits, options=ONE)


def test_directions_are_at_most_the_rank(make):
    rng = np.random.default_rng(0)
    old = rng.standard_normal((40, 2)) @ rng.standard_normal((2, 30))
    models = {"a.weight": old}, {"a.weight": old + 1e-3 * rng.standard_normal((40, 30))}
    found = difference(*[make.audited(model) for model in models], models=models, options=ONE)
    assert found.comparison.layers[0].weights["directions"] == 2
    with pytest.raises(tw.UsageError, match="directions"):
        difference(*[make.audited(model) for model in models], models=models, options=DifferenceOptions(directions=0))
