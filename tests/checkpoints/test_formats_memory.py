"""Live modules, mappings of arrays, and single arrays."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError


class Tied(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Embedding(5, 3)
        self.head = torch.nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight
        self.config = SimpleNamespace(to_dict=lambda: {"model_type": "tied"})


def test_a_module_is_not_copied_and_ties_are_told():
    module = Tied()
    checkpoint = open_checkpoint(module)
    assert checkpoint.read("embed.weight").data_ptr() == module.embed.weight.data_ptr()
    assert checkpoint.shared == {"head.weight": "embed.weight"}
    assert checkpoint.config == {"model_type": "tied"}
    assert checkpoint.uri == "Tied"
    assert not checkpoint.read("embed.weight").requires_grad


def test_views_of_one_storage_are_not_ties():
    base = torch.randn(4, 4)
    assert open_checkpoint({"a": base, "b": base[:2], "c": base.T}).shared == {}


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i4", "u1", "u2", "?", ">f4", "c8"])
def test_numpy_arrays(dtype):
    array = (np.arange(6) % 2).reshape(2, 3).astype(dtype)
    checkpoint = open_checkpoint({"x": array})
    assert np.array_equal(checkpoint.read("x").numpy(), array)
    assert checkpoint.tensors["x"].nbytes == array.nbytes


def test_arrays_that_torch_does_not_take():
    array = np.arange(6.0).reshape(2, 3)
    array.flags.writeable = False
    checkpoint = open_checkpoint({"frozen": array, "flipped": array[::-1], "zero": np.float32(2)})
    assert checkpoint.read("frozen").tolist() == array.tolist()
    assert checkpoint.read("flipped").tolist() == array[::-1].tolist()
    assert checkpoint.read("zero").shape == ()


def test_ml_dtypes():
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.arange(6.0).reshape(2, 3)
    for name, dtype in {"bfloat16": torch.bfloat16, "float8_e4m3fn": torch.float8_e4m3fn}.items():
        got = open_checkpoint(array.astype(getattr(ml_dtypes, name))).read("weight")
        assert got.dtype == dtype
        assert got.float().tolist() == array.tolist()


def test_one_array_is_named_weight():
    assert open_checkpoint(np.ones((2, 2))).tensors.keys() == {"weight"}
    assert open_checkpoint(torch.ones(2, 2)).read("weight").shape == (2, 2)


def test_nested_mappings_are_joined_with_dots():
    assert open_checkpoint({"a": {"b": np.ones(2)}, "c": np.ones(1)}).tensors.keys() == {"a.b", "c"}


@pytest.mark.parametrize("value", [3, None, ["x"], {"a": "text"}, {"a": {"b": 3}}])
def test_other_things_are_a_usage_error(value):
    with pytest.raises(UsageError, match="not a tensor, an array or a mapping"):
        open_checkpoint(value)


def test_an_empty_mapping():
    with pytest.raises(UnreadableError, match="holds no tensors"):
        open_checkpoint({})


@pytest.mark.parametrize("bad", [torch.ones(2, device="meta"), np.array(["a"]), np.array([None])])
def test_values_that_cannot_be_read_fail_when_read(bad):
    checkpoint = open_checkpoint({"bad": bad, "good": torch.ones(1)})
    with pytest.raises(UnreadableError, match="tensor bad"):
        checkpoint.read("bad")
    assert checkpoint.read("good").item() == 1


def test_a_checkpoint_is_itself():
    checkpoint = open_checkpoint(np.ones(2))
    assert open_checkpoint(checkpoint) is checkpoint
