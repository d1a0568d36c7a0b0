"""Faults where no spectrum's tail and no peer of the shape helps: small, lone and convolutional layers."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.audits.audit import Audit

Weights = dict[str, np.ndarray]


def learned(rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with heavy directions, and rows and columns of sizes of their own."""
    directions = rng.pareto(2.5, min(rows, cols)).clip(0, 4)[:, None] * rng.normal(size=(min(rows, cols), cols))
    weights = rng.normal(size=(rows, cols)) + 0.3 * rng.normal(size=(rows, min(rows, cols))) @ directions / np.sqrt(
        rows
    )
    weights *= rng.lognormal(0, 0.3, (rows, 1)) * rng.lognormal(0, 0.2, (1, cols))
    return weights / weights.std() / np.sqrt(cols)


def model(seed: int = 0) -> Weights:
    """Dense layers without blocks and without peers of their shape, below 100 eigenvalues, and convolutions."""
    rng = np.random.default_rng(seed)
    dense = {f"dense_{i}.weight": learned(60 + 4 * i, 90 + 8 * i, rng) for i in range(5)}
    convolutions = {f"conv_{i}.weight": learned(64, 64 * 9, rng).reshape(64, 64, 3, 3) for i in range(3)}
    return dense | convolutions


def codes_of(weights: Weights, layer: str) -> set[str]:
    """Codes of warnings and errors that name the layer."""
    found = tw.diagnose(audit(weights))
    return {item.code for item in found.findings if not item.noted and layer in item.layers}


def audit(weights: Weights) -> Audit:
    tensors = {name: torch.tensor(array, dtype=torch.float32) for name, array in weights.items()}
    return tw.audit(tensors, use_cache=False, workers=1)


def flat(array: np.ndarray, change: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    return change(array.reshape(len(array), -1)).reshape(array.shape)


def noise(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(9).normal(0, array.std(), array.shape)


def shuffled(array: np.ndarray) -> np.ndarray:
    return np.random.default_rng(9).permutation(array.ravel()).reshape(array.shape)


def collapsed(array: np.ndarray) -> np.ndarray:
    changed = array.copy()
    changed[:16] = np.linspace(0.5, 1.5, 16)[:, None] * changed[:16].mean(0)
    return changed


@pytest.mark.parametrize("seed", range(3))
def test_the_healthy_model_has_no_warning(seed):
    found = tw.diagnose(audit(model(seed)))
    assert [item for item in found.findings if not item.noted] == []


@pytest.mark.parametrize("layer", ["dense_0", "dense_4", "conv_1"])
@pytest.mark.parametrize(
    ("change", "codes"),
    [(noise, {"TW201"}), (shuffled, {"TW201", "TW206"}), (lambda array: 10 * array, {"TW401"}),
     (collapsed, {"TW603"})],
    ids=["noise", "shuffled", "scale", "collapsed"],
)  # fmt: skip
def test_a_fault_in_one_of_them_is_found(layer, change, codes):
    weights = model()
    weights[f"{layer}.weight"] = flat(weights[f"{layer}.weight"], change)
    assert codes_of(weights, layer) & codes


def test_filters_that_decayed_are_noted_and_copies_are_a_warning():
    """Both lose directions to the rounding of float32; only the second has rows of an ordinary size."""
    decayed, copied = model(), model()
    decayed["conv_0.weight"][:8] *= 1e-12
    copied["conv_0.weight"][:8] = copied["conv_0.weight"][8:16]
    found = {item.severity for item in tw.diagnose(audit(decayed)).findings if item.code == "TW603"}
    assert found <= {"info"}
    assert codes_of(copied, "conv_0") & {"TW603"}


def test_several_matrices_in_no_order_are_only_noted():
    """Training that has just begun leaves most matrices so, each with a direction that moved."""
    rng = np.random.default_rng(3)
    young = {}
    for index in range(6):
        signs = [rng.choice([-1.0, 1.0], size) for size in (80, 120)]
        young[f"dense_{index}.weight"] = rng.normal(0, 0.1, (80, 120)) + 0.05 * np.outer(*signs)
    found = [item for item in tw.diagnose(audit(young)).findings if item.code == "TW206"]
    assert [item.severity for item in found] == ["info"]


def test_an_audit_that_did_not_look_at_rows_says_so_or_judges_as_before(tmp_path):
    from dataclasses import replace

    from tailwise.audits.rows import Layer

    weights = model()
    weights["dense_0.weight"] = noise(weights["dense_0.weight"])
    now = audit(weights)
    layers = {one.row.name: Layer(one.row, replace(one.spectrum, order_z=None, weak_vectors=None)) for one in now}
    old = tw.diagnose(Audit(list(now.rows), layers, now.provenance))
    assert any(item.code == "TW206" and "audit again" in item.reason for item in old.not_looked)
    assert not any("dense_0" in item.layers for item in old.findings if not item.noted)


def test_what_was_seen_of_rows_is_kept_in_the_file_and_in_the_cache(tmp_path):
    tensors = {name: torch.tensor(array) for name, array in model().items()}
    first = tw.audit(tensors, cache_dir=tmp_path, workers=1)
    first.save(tmp_path / "x.audit")
    again = tw.audit(tensors, cache_dir=tmp_path, workers=1)
    for other in (Audit.load(tmp_path / "x.audit"), again):
        for layer in first:
            one = other[layer.row.name].spectrum
            assert (one.order_z, one.weak_vectors) == (layer.spectrum.order_z, layer.spectrum.weak_vectors)
