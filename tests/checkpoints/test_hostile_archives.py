"""Members of archives that would unfold into far more than they take are refused before they do."""

import io
import zipfile

import numpy as np
import pytest

from tailwise.checkpoints.formats import unfolding
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
