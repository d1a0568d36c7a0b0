"""Tensors over the same bytes: some views of a storage are read, work out of nothing is not."""

import pickle
import zipfile

import numpy as np
import pytest
import torch

import tailwise as tw
from tailwise.checkpoints.formats.repeated import _BEYOND, _TIMES, Laid, beyond_what_is_held
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError

SIDE = 2048  # 16 MiB in float32


def refused(path):
    with open_checkpoint(path) as checkpoint:
        return {name: why for name, why in checkpoint.unsupported.items() if "repeated" in why}


def test_matrices_of_one_stored_row_are_no_work_without_end(tmp_path):
    row = torch.ones(1, SIDE)
    path = tmp_path / "m.pt"
    torch.save({f"layers.{n}.weight": row[:, : SIDE - n].expand(SIDE, SIDE - n) for n in range(20)}, path)
    assert path.stat().st_size < 20_000
    with open_checkpoint(path) as checkpoint:
        read = sum(s.nbytes for name, s in checkpoint.tensors.items() if name not in checkpoint.unsupported)
        assert len(checkpoint.tensors) == 20
    assert 0 < read <= _BEYOND + 8 * 4 * SIDE
    assert "contiguous()" in next(iter(refused(path).values()))


def test_views_of_one_storage_are_read_up_to_a_few_times_its_size():
    held = 1 << 30
    views = [Laid(f"v{n}", "flat", held, held) for n in range(20)]
    assert list(beyond_what_is_held(views)) == [f"v{n}" for n in range(_TIMES, 20)]


def test_a_tensor_for_which_there_is_room_is_read_after_one_for_which_there_is_none():
    views = [Laid("huge", "a", 4, 1 << 40), Laid("small", "a", 4, 1 << 10), Laid("own", "b", 1 << 34, 1 << 34)]
    assert list(beyond_what_is_held(views)) == ["huge"]


def test_tied_and_flat_weights_are_read(tmp_path):
    flat = torch.randn(3 * 64 * 64, generator=torch.Generator().manual_seed(0))
    parts = {f"layers.{n}.weight": flat[n * 4096 : (n + 1) * 4096].view(64, 64) for n in range(3)}
    embedding = torch.randn(300, 64)
    tied = {"wte.weight": embedding, "head.weight": embedding, "turned.weight": embedding.T}
    many = {f"tied.{n}.weight": embedding for n in range(200)}
    torch.save({"flat": flat, **parts, **tied, **many}, tmp_path / "m.pt")
    assert refused(tmp_path / "m.pt") == {}
    rows = {row.name: row for row in tw.audit(tmp_path / "m.pt", use_cache=False).rows}
    assert all(rows[f"layers.{n}"].measured for n in range(3))
    assert rows["wte"].measured
    assert rows["turned"].measured
    assert rows["head.weight"].status == "SHARED"


def test_ranges_of_a_gguf_file_that_lie_over_each_other_are_bounded(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    count = 40
    for n in range(count):
        writer.add_tensor(f"blk.{n}.ffn_up.weight", np.full((1, 32), n, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    data = bytearray(path.read_bytes())
    for n in range(count):  # each claims all rows from the same place on
        name = f"blk.{n}.ffn_up.weight".encode()
        at = data.index(name) + len(name)
        data[at + 4 + 8 : at + 20] = SIDE.to_bytes(8, "little")  # ne[1]
        data[at + 4 : at + 12] = SIDE.to_bytes(8, "little")
        data[at + 24 : at + 32] = bytes(8)
    path.write_bytes(bytes(data) + bytes(4 * SIDE * SIDE))
    found = refused(path)
    assert len(found) == count - _TIMES - _BEYOND // (4 * SIDE * SIDE)


def test_names_of_one_array_of_a_keras_file_are_bounded(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "w.h5", "w") as file:
        file.create_dataset("g/kernel", data=np.zeros((SIDE, SIDE), np.float32), compression="gzip")
        file.create_dataset("tied/kernel", data=np.eye(60, dtype=np.float32))
        for n in range(40):
            file[f"more{n}/kernel"] = file["g/kernel"]
        file["head/kernel"] = file["tied/kernel"]
    found = refused(tmp_path / "w.h5")
    assert len(found) == 41 - _TIMES - _BEYOND // (4 * SIDE * SIDE)
    assert not any(name.startswith(("tied", "head")) for name in found)


@pytest.mark.parametrize("kind", ["torch", "numpy"])
def test_parts_of_an_archive_that_lie_over_each_other_are_refused(tmp_path, kind):
    path = tmp_path / ("m.pt" if kind == "torch" else "m.npz")
    arrays = {f"a{n}": np.eye(30, dtype=np.float32) + n for n in range(3)}
    if kind == "torch":
        torch.save({name: torch.from_numpy(array) for name, array in arrays.items()}, path)
    else:
        np.savez(path, **arrays)
    with open_checkpoint(path) as checkpoint:
        assert len(checkpoint.tensors) == 3
    data = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        parts = [one for one in archive.infolist() if one.filename.endswith(".npy") or "/data/" in one.filename]
        directory = archive.start_dir
    for one in parts[1:]:
        name = one.filename.encode()
        at = data.index(name, directory) - 46
        data[at + 42 : at + 46] = parts[0].header_offset.to_bytes(4, "little")
    path.write_bytes(data)
    with pytest.raises(UnreadableError, match="lies over another"):
        open_checkpoint(path).close()


def test_external_data_of_onnx_that_lies_over_each_other_is_bounded(tmp_path):
    pytest.importorskip("onnx")
    from onnx import TensorProto, helper

    (tmp_path / "w.bin").write_bytes(bytes(4 * SIDE * SIDE))
    nodes, weights = [], []
    for n in range(40):
        weight = TensorProto(name=f"l{n}.weight", data_type=TensorProto.FLOAT, dims=[SIDE, SIDE])
        weight.data_location = TensorProto.EXTERNAL
        for key, value in (("location", "w.bin"), ("offset", "0"), ("length", str(4 * SIDE * SIDE))):
            weight.external_data.add(key=key, value=value)
        weights.append(weight)
        nodes.append(helper.make_node("MatMul", [f"x{n}", weight.name], [f"x{n + 1}"]))
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x0", "x40")]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights))
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    assert len(refused(tmp_path / "m.onnx")) == 40 - _TIMES - _BEYOND // (4 * SIDE * SIDE)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_chunks_of_a_distributed_checkpoint_that_are_one_are_bounded(tmp_path):
    import torch.distributed.checkpoint as dcp

    names = [f"layers.{n}.weight" for n in range(30)]
    dcp.save({name: torch.zeros(SIDE, SIDE) if n == 0 else torch.zeros(1) for n, name in enumerate(names)},
             checkpoint_id=str(tmp_path))  # fmt: skip
    metadata = pickle.loads((tmp_path / ".metadata").read_bytes())
    first = metadata.state_dict_metadata[names[0]]
    (place,) = [info for index, info in metadata.storage_data.items() if index.fqn == names[0]]
    (index,) = [index for index in metadata.storage_data if index.fqn == names[0]]
    for name in names[1:]:
        metadata.state_dict_metadata[name] = first
    metadata.storage_data = {type(index)(name, index.offset, index.index): place for name in names}
    (tmp_path / ".metadata").write_bytes(pickle.dumps(metadata))
    assert len(refused(tmp_path)) in (30 - _TIMES - 1, 30 - _TIMES)
