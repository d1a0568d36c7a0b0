"""Packed weights whose parts disagree: refused by their shapes, before anything is spread or multiplied."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import tailwise as tw
from tailwise.checkpoints.hub import _is_name
from tailwise.core.errors import UnreadableError
from tailwise.history.runs.found import step_of

WEIGHTS = {"num_bits": 4, "type": "int", "strategy": "channel", "symmetric": True}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized",
          "config_groups": {"group_0": {"targets": ["Linear"], "weights": WEIGHTS}}}  # fmt: skip


def saved(folder, tensors, config):
    folder.mkdir()
    save_file({"other.weight": torch.randn(64, 64), **tensors}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def unread(folder):
    """Why rows were not measured, of an audit that measured the other matrix all the same."""
    audit = tw.audit(folder, use_cache=False, baseline_replicas=1)
    assert "other" in audit
    return [row.reason for row in audit.unmeasured]


@pytest.mark.parametrize(
    "odd",
    [{"weight_scale": torch.ones(400_000, 1, 1)}, {"weight_zero_point": torch.zeros(1, 400_000)},
     {"weight_shape": torch.tensor([64, -1])}, {"weight_shape": torch.tensor([64, 10**9])},
     {"weight_shape": torch.tensor([64])}],
)  # fmt: skip
def test_compressed_tensors(tmp_path, odd):
    pytest.importorskip("compressed_tensors")
    parts = {"weight_packed": torch.zeros(64, 8, dtype=torch.int32), "weight_scale": torch.ones(64, 1),
             "weight_shape": torch.tensor([64, 64])}  # fmt: skip
    tensors = {f"m.{name}": value for name, value in {**parts, **odd}.items()}
    reasons = unread(saved(tmp_path / "m", tensors, {"quantization_config": PACKED}))
    assert any("its " in reason for reason in reasons)


@pytest.mark.parametrize("shape", [torch.tensor([64.0, float("nan")]), torch.ones(9, dtype=torch.int64)])
def test_a_shape_that_is_none_is_one_message(tmp_path, shape):
    pytest.importorskip("compressed_tensors")
    tensors = {"m.weight_packed": torch.zeros(64, 8, dtype=torch.int32), "m.weight_scale": torch.ones(64, 1)}
    folder = saved(tmp_path / "m", {**tensors, "m.weight_shape": shape}, {"quantization_config": PACKED})
    with pytest.raises(UnreadableError, match="weight_shape is no shape"):
        tw.audit(folder, use_cache=False)


@pytest.mark.parametrize("odd", [{"per_tensor_scale": torch.ones(1, 120_000)}, {"zero_point": torch.ones(1, 1, 9)}])
def test_torchao(tmp_path, odd):
    parts = {"qdata": torch.ones(64, 64, dtype=torch.int8), "scale": torch.ones(64, 1), **odd}
    reasons = unread(saved(tmp_path / "m", {f"m._weight_{name}": value for name, value in parts.items()}, {}))
    assert any("torchao" in reason for reason in reasons)


def test_an_orthogonal_map_whose_base_does_not_fit(tmp_path):
    stem = "m.parametrizations.weight"
    tensors = {f"{stem}.original": torch.randn(4000, 60), f"{stem}.0.base": torch.ones(1, 1)}
    assert any("its base is [1, 1]" in reason for reason in unread(saved(tmp_path / "m", tensors, {})))


def test_modules_that_are_no_list(tmp_path):
    settings = {"linear_class": "autobitlinear", "quantization_mode": "online", "modules_to_not_convert": 5}
    with pytest.raises(UnreadableError, match="modules_to_not_convert is no list"):
        tw.audit(saved(tmp_path / "m", {}, {"quantization_config": settings}), use_cache=False)


@pytest.mark.parametrize(
    ("name", "is_one"),
    [("model.safetensors", True), ("a/b.json", True), (None, False), (["a"], False), ("", False), ("../x", False),
     ("/x", False), ("a//b", False), ("x" * 300, False), ("a\0b", False)],
)  # fmt: skip
def test_names_that_a_hub_lists(name, is_one):
    assert _is_name(name) == is_one


def test_a_step_of_more_digits_than_python_reads():
    assert step_of("step-" + "9" * 5000) is None
    assert step_of("step-" + "0" * 30 + "12") == 12
    assert np.isfinite(step_of("step-900"))
