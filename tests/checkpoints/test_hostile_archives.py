"""Members of archives that would unfold into far more than they take are refused before they do."""

import io
import struct
import zipfile

import numpy as np
import pytest

import tailwise as tw
from tailwise.checkpoints.formats import keras, unfolding
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError


@pytest.fixture(autouse=True)
def small_bound(monkeypatch):
    monkeypatch.setattr(unfolding, "MOST_BYTES", 1 << 16)


def test_an_array_of_zeros_in_an_npz(tmp_path):
    np.savez_compressed(tmp_path / "m.npz", w=np.zeros((1024, 1024)))
    with pytest.raises(UnreadableError, match=r"w\.npy would unfold from \d+ to \d+ bytes"):
        open_checkpoint(tmp_path / "m.npz")
    np.savez(tmp_path / "m.npz", w=np.zeros((1024, 1024)))  # as it is: no secret in that
    assert open_checkpoint(tmp_path / "m.npz").tensors["w"].shape == (1024, 1024)


def test_weights_of_a_keras_archive(tmp_path):
    h5py = pytest.importorskip("h5py")
    sink = io.BytesIO()
    with h5py.File(sink, "w") as file:
        file.create_dataset("layers/dense/vars/0", data=np.ones((16, 16), np.float32))
    with zipfile.ZipFile(tmp_path / "m.keras", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("metadata.json", "{}")
        archive.writestr("config.json", "{}")
        archive.writestr("model.weights.h5", sink.getvalue() + bytes(1 << 22))
    with pytest.raises(UnreadableError, match="would unfold"):
        open_checkpoint(tmp_path / "m.keras")


def test_hdf5_whose_tree_of_links_repeats_ends(tmp_path, monkeypatch):
    h5py = pytest.importorskip("h5py")
    path, nodes, size = tmp_path / "model.h5", 32, 24 + 32 * 16 + 8
    with h5py.File(path, "w", libver=("earliest", "v108")) as file:
        for number in range(5):
            file.create_dataset(f"w{number}", data=np.zeros((2, 2), np.float32))
    data = bytearray(path.read_bytes())
    at = data.index(b"TREE")
    leaf = bytes(data[at : at + size])
    key, _, last = struct.unpack("<QQQ", leaf[24:48])

    def node(level, child):
        head = b"TREE" + bytes([0, level]) + struct.pack("<HQQ", nodes, 2**64 - 1, 2**64 - 1)
        return head + struct.pack("<QQ", key, child) * nodes + struct.pack("<Q", last)

    child = len(data)
    data += leaf
    for level in range(1, 8):
        data += bytes(-len(data) % 8)
        place = len(data)
        data += node(level, child)
        child = place
    data[at : at + size] = node(8, child)
    data[40:48] = struct.pack("<Q", len(data))
    path.write_bytes(data)
    assert len(data) < 20_000
    monkeypatch.setattr(keras, "_MOST_LINKS", 10_000)
    with pytest.raises(UnreadableError, match="more than 10000 groups and arrays"):
        tw.audit(path)
