"""Files of many small parts: what is done grows with their number, not with its square."""

import json
import struct

import numpy as np
import pytest
import torch

from tailwise.checkpoints.formats import keras, saved
from tailwise.checkpoints.matrices import group
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.readings import plain


def flat(path, names, dtype="F32", size=4):
    header = {name: {"dtype": dtype, "shape": [1, 4], "data_offsets": [index * 4 * size, (index + 1) * 4 * size]}
              for index, name in enumerate(names)}  # fmt: skip
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(4 * size * len(names)))
    return path


@pytest.mark.parametrize("dtype", ["F32", "I32"])
def test_tensors_without_modules_are_held_against_those_of_their_name_alone(tmp_path, monkeypatch, dtype):
    looked = []
    before = plain._could_scale, plain._is_named_after
    monkeypatch.setattr(plain, "_could_scale", lambda *given: looked.append(1) or before[0](*given))
    monkeypatch.setattr(plain, "_is_named_after", lambda *given: looked.append(1) or before[1](*given))
    names = [f"a{number}" for number in range(5000)]
    with open_checkpoint(flat(tmp_path / "model.safetensors", names, dtype)) as checkpoint:
        found, rest = group(checkpoint, conv="flatten", min_evals=1)
    assert len(found) + len(rest) == 5000
    assert len(looked) < 50_000


def test_a_scale_of_a_weight_s_name_is_found_among_many(tmp_path):
    names = [f"a{number}" for number in range(3000)]
    file = flat(tmp_path / "model.safetensors", [*names, "a7_scale"])
    with open_checkpoint(file) as checkpoint:
        _, rest = group(checkpoint, conv="flatten", min_evals=1)
    assert any("a7_scale" in row.reason for row in rest if row.name.startswith("a7"))


def test_groups_of_a_keras_file_are_looked_at_once_each(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    given = []
    before = h5py.Group.__iter__
    monkeypatch.setattr(h5py.Group, "__iter__", lambda self: (given.append(name) or name for name in before(self)))
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for number in range(300):
            file.create_dataset(f"g{number}/kernel", data=np.eye(4))
    with open_checkpoint(tmp_path / "w.h5") as checkpoint:
        assert len(checkpoint.tensors) == 300
    assert len(given) < 3000


@pytest.mark.parametrize("name", ["a/b", ".", "/", "soft", "outside", "nothing"])
def test_only_what_lies_in_a_group_itself_is_its_own(tmp_path, name):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file["a/b"] = np.eye(4)
        file["soft"], file["outside"] = h5py.SoftLink("/a"), h5py.ExternalLink("other.h5", "/a")
        assert keras._is_own(file, "a")
        assert not keras._is_own(file, name)


def test_values_of_a_saved_dict_are_looked_at_once_each(tmp_path, monkeypatch):
    looked = []
    before = saved._holds_matrices
    monkeypatch.setattr(saved, "_holds_matrices", lambda tree: looked.append(len(tree)) or before(tree))
    torch.save({f"p{number}": torch.zeros(1) for number in range(500)}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        assert len(checkpoint.tensors) == 500
    assert sum(looked) < 5000
