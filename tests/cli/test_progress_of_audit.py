"""While an audit runs: what went wrong is said at once, and the first row does not wait for the largest matrix."""

from __future__ import annotations

import numpy as np
import pytest
from safetensors.numpy import save_file

import tailwise as tw

RNG = np.random.default_rng(1)


@pytest.fixture
def model(tmp_path):
    weights = {f"layers.{i}.mlp.up_proj.weight": RNG.standard_normal((90, 40 + i)) for i in range(4)}
    weights["layers.2.mlp.up_proj.weight"][3, 5] = np.nan
    save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


def test_a_matrix_that_cannot_be_measured_is_told_while_the_others_are(model, call):
    code, out, said = call("audit", model, "--no-cache")
    assert code == 0
    assert "tailwise: layers.2.mlp.up_proj: 1 NaN and 0 Inf, the first at row 3, column 5" in said
    assert said.count("layers.2.mlp.up_proj") == 1
    assert "layers.2.mlp.up_proj" in out


def test_the_smallest_matrix_comes_first_and_the_largest_next(model):
    seen = []
    tw.audit(model, workers=1, use_cache=False, progress=lambda step: seen.append(step.row))
    assert [row.cols for row in seen if row is not None] == [40, 43, 42, 41]
