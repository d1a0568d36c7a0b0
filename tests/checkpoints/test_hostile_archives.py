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


def damaged(path, member):
    """Overwrite the packed bytes of a member of an archive, all but the first of them."""
    with zipfile.ZipFile(path) as archive:
        info = archive.getinfo(member)
    data = bytearray(path.read_bytes())
    start = info.header_offset + 30 + len(member)
    data[start + 12 : start + info.compress_size] = b"\xff" * (info.compress_size - 12)
    path.write_bytes(data)


@pytest.mark.parametrize("packing", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
@pytest.mark.parametrize("kind", ["npz", "keras", "pt"])
def test_packed_bytes_that_are_damaged_are_one_message(tmp_path, packing, kind):
    if kind == "keras":
        pytest.importorskip("h5py")
    array = io.BytesIO()
    np.save(array, np.random.default_rng(0).standard_normal((64, 64)))
    members = {
        "npz": {"w.npy": array.getvalue()},
        "keras": {"model.weights.h5": array.getvalue()},
        "pt": {"net/constants.pkl": b"x" * 200, "net/data.pkl": array.getvalue()},  # code and data: a TorchScript file
    }[kind]
    path = tmp_path / f"m.{kind}"
    with zipfile.ZipFile(path, "w", packing) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    damaged(path, list(members)[-1])
    said, rows = "", []
    try:
        rows = [row.status for row in tw.audit(path, use_cache=False).rows]
    except UnreadableError as error:
        said = error.fix
    assert "damaged" in said or rows == ["UNREADABLE"]  # who reads the header before the damage may have the row


def header(text):
    """A file of numpy with this header."""
    raw = text.encode()
    raw += b" " * (-(10 + len(raw) + 1) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(raw)) + raw + bytes(400)


@pytest.mark.parametrize(
    "text",
    [
        "{'descr': (",
        "'''",
        "(\n  1\n 2",
        "{[]: 1}",
        "-" * 8000,
        "[" * 8000,
        "{'descr': '<f4', 'shape': (-1,)}",
        "{}",
        "",
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_header_of_numpy_that_is_no_header_is_one_message(tmp_path, text, packed):
    path = tmp_path / ("m.npz" if packed else "m.npy")
    if packed:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w.npy", header(text))
    else:
        path.write_bytes(header(text))
    with pytest.raises(UnreadableError, match="is not a whole NumPy file"):
        open_checkpoint(path)
