"""Small files whose tensors lie one over the other: each would be measured, so a megabyte could ask for days."""

import zipfile

import gguf
import h5py
import numpy as np
import onnx
import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError


def _read_in_measure(path, held):
    """Of tensors that lie one over the other, as many as a tied file may hold are read; the rest are rows."""
    with open_checkpoint(path) as checkpoint:
        read = [spec.nbytes for name, spec in checkpoint.tensors.items() if name not in checkpoint.unsupported]
        assert checkpoint.unsupported
    assert 0 < sum(read) <= 8 * held + (16 << 20)


def test_views_at_every_offset_of_one_storage_are_read_in_measure(tmp_path):
    flat = torch.randn(90_000 + 200)
    torch.save({f"l.{i}.weight": flat.as_strided((300, 300), (300, 1), i) for i in range(200)}, tmp_path / "m.pt")
    _read_in_measure(tmp_path / "m.pt", flat.nbytes)


def test_a_buffer_beside_its_views_and_ties_are_read(tmp_path):
    flat = torch.randn(2, 64, 64)
    tensors = {"flat": flat.view(-1), "a.weight": flat[0], "b.weight": flat[1], "tied.weight": flat[0]}
    torch.save(tensors, tmp_path / "m.pt")
    audit = tw.audit(tmp_path / "m.pt", use_cache=False)
    assert {row.name.removesuffix(".weight"): row.status for row in audit.rows}["tied"] == "SHARED"
    assert audit["b"].alpha_hill > 0


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("quantized", [False, True])
def test_a_matrix_of_repeated_codes_is_one_row(tmp_path, quantized):
    flat = torch.randn(20_000)
    flat = torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8) if quantized else flat.to(torch.float8_e4m3fn)
    torch.save({"w.weight": flat.as_strided((8192, 8192), (1, 1)), "v.weight": torch.randn(16, 16)}, tmp_path / "m.pt")
    (row,) = [row for row in tw.audit(tmp_path / "m.pt", use_cache=False).rows if row.name.startswith("w")]
    assert row.status == "UNSUPPORTED"
    assert "repeated" in row.reason


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_told(tmp_path):
    torch.save({"w": torch.nested.nested_tensor([torch.ones(3), torch.ones(4)])}, tmp_path / "m.pt")
    with pytest.raises(UnreadableError, match="nested tensor"):
        open_checkpoint(tmp_path / "m.pt")


def test_tensors_of_gguf_over_each_other_are_read_in_measure(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    for i in range(60):
        writer.add_tensor(f"blk.{i}.ffn_down.weight", np.zeros((300, 300), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    for i in range(60):  # every tensor begins where the first does
        name = f"blk.{i}.ffn_down.weight".encode()
        place = data.index(name) + len(name) + 4 + 16 + 4
        data[place : place + 8] = bytes(8)
    path.write_bytes(data[: len(data) - 59 * 360_000])
    _read_in_measure(path, len(data))


def test_tensors_of_onnx_over_each_other_are_read_in_measure(tmp_path):
    (tmp_path / "data").write_bytes(bytes(400_000))
    tensors, nodes = [], []
    for i in range(60):
        tensor = onnx.TensorProto(name=f"w{i}", data_type=1, dims=[300, 300], data_location=1)
        for key, value in {"location": "data", "offset": str(4 * i)}.items():
            tensor.external_data.add(key=key, value=value)
        tensors.append(tensor)
        nodes.append(onnx.helper.make_node("MatMul", ["x", f"w{i}"], [f"y{i}"]))
    model = onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [], [], tensors))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    _read_in_measure(tmp_path / "m.onnx", 400_000)


def test_links_to_one_dataset_are_one_matrix(tmp_path):
    with h5py.File(tmp_path / "m.h5", "w") as file:
        file["a/kernel"] = np.random.default_rng(0).standard_normal((60, 50))
        for i in range(5):
            file[f"b{i}/kernel"] = file["a/kernel"]
    audit = tw.audit(tmp_path / "m.h5", use_cache=False)
    assert sorted(row.status for row in audit.rows)[-5:] == ["SHARED"] * 5
    assert sum(row.measured for row in audit.rows) == 1


def test_a_dataset_that_unfolds_without_end_is_one_row(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.checkpoints.formats.keras.MOST_BYTES", 1 << 20)
    with h5py.File(tmp_path / "m.h5", "w") as file:
        data = file.create_dataset("w", (1000, 1000), "f4", chunks=(1000, 1000), compression="gzip")
        data[:] = 1.0
        file["v"] = np.eye(20, dtype=np.float32)
    assert "claims" in open_checkpoint(tmp_path / "m.h5").unsupported["w"]


def test_parts_of_an_archive_are_bounded_together(tmp_path, monkeypatch):
    monkeypatch.setattr("tailwise.checkpoints.formats.unfolding.MOST_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "m.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        for i in range(5):
            with archive.open(f"w{i}.npy", "w") as member:
                np.lib.format.write_array(member, np.zeros((400, 400), np.float32))
    with pytest.raises(UnreadableError, match="together"):
        open_checkpoint(tmp_path / "m.npz")
