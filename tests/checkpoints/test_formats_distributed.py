"""Folders of torch.distributed.checkpoint: chunks come together, optimizers stay out, and no pickle runs anything."""

from __future__ import annotations

import io
import os
import pickle
import subprocess
import textwrap
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex

import tailwise as tw
from tailwise.checkpoints.formats import distributed
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UnsafeError

pytestmark = pytest.mark.filterwarnings("ignore")  # torch warns that there is one process


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.LayerNorm(16), torch.nn.Linear(16, 10))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder as a training loop writes it, and the weights in it."""
    folder, model = tmp_path_factory.mktemp("dcp") / "step-1", net()
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.randn(4, 12)).sum().backward()
    optimizer.step()
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "scale": torch.tensor(2.0)}
    dcp.save(state, checkpoint_id=str(folder))
    return folder, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def test_weights_come_back_and_the_optimizer_is_left_out(saved):
    folder, weights = saved
    for source in (folder, folder / ".metadata", folder / "__0_0.distcp"):
        opened = open_checkpoint(source)
        assert opened.tensors.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(opened.read(name), tensor)
            assert opened.tensors[name].nbytes == tensor.nbytes
        assert torch.equal(opened.read_rows("0.weight", 3, 7), weights["0.weight"][3:7])
        assert any("optimizer" in note for note in opened.notes)
        assert torch.equal(opened.part(["2.weight"]).read("2.weight"), weights["2.weight"])


def test_it_measures_as_the_module(saved):
    folder, weights = saved
    audit = tw.audit(folder)
    assert {layer.row.name for layer in audit} == {"0", "2"}
    assert audit["0"].spectrum.eigenvalues.max() == pytest.approx(
        float(torch.linalg.svdvals(weights["0.weight"].double())[0] ** 2)
    )
    assert any("optimizer" in note for note in audit.provenance.notes)


SHARDED = """
    import os, sys, warnings
    warnings.simplefilter("ignore")
    import torch, torch.distributed as dist, torch.distributed.checkpoint as dcp
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    def main(rank):
        dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}/meet", rank=rank, world_size=2)
        mesh = init_device_mesh("cpu", (2,))
        torch.manual_seed(0)
        rows, cols, odd = torch.randn(12, 16), torch.randn(12, 16), torch.randn(7, 3)
        whole = torch.ones(3).bfloat16()
        state = {"rows": distribute_tensor(rows, mesh, [Shard(0)]), "cols": distribute_tensor(cols, mesh, [Shard(1)]),
                 "odd": distribute_tensor(odd, mesh, [Shard(0)]), "whole": whole}
        dcp.save({"model": state}, checkpoint_id=f"{sys.argv[1]}/out")
        if rank == 0:
            torch.save({"rows": rows, "cols": cols, "odd": odd, "whole": whole}, f"{sys.argv[1]}/truth")
        dist.destroy_process_group()

    if __name__ == "__main__":
        torch.multiprocessing.start_processes(main, nprocs=2, start_method="fork")  # one import of torch is enough
"""


def test_what_two_processes_wrote_is_one_model(tmp_path, python):
    (tmp_path / "run.py").write_text(textwrap.dedent(SHARDED))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(
        [python, tmp_path / "run.py", str(tmp_path)], check=True, capture_output=True, cwd=tmp_path, env=environment
    )
    opened = open_checkpoint(tmp_path / "out")
    truth = torch.load(tmp_path / "truth", weights_only=True)
    assert opened.tensors.keys() == truth.keys()
    for name, tensor in truth.items():
        assert torch.equal(opened.read(name), tensor)
        rows = [opened.read_rows(name, i, min(i + 5, len(tensor))) for i in range(0, len(tensor), 5)]
        assert torch.equal(torch.cat(rows), tensor)


def test_accelerates_folder_is_opened_from_above(tmp_path):
    dcp.save({"model": net().state_dict()}, checkpoint_id=str(tmp_path / "pytorch_model_fsdp_0"))
    (tmp_path / "optimizer_0").mkdir()
    opened = open_checkpoint(tmp_path)
    assert opened.tensors.keys() == net().state_dict().keys()
    assert torch.equal(opened.read("0.weight"), net()[0].weight)
    assert torch.equal(opened.part(["0.weight"]).read("0.weight"), net()[0].weight)


def test_an_average_beside_the_weights_can_be_asked_for(tmp_path):
    state = net().state_dict()
    dcp.save({"model": state, "ema": {name: value + 1 for name, value in state.items()}}, checkpoint_id=str(tmp_path))
    assert torch.equal(open_checkpoint(tmp_path).read("0.weight"), state["0.weight"])
    assert torch.equal(open_checkpoint(tmp_path, part="ema").read("0.weight"), state["0.weight"] + 1)


def test_megatrons_stack_of_layers_is_taken_apart(tmp_path):
    stack = torch.randn(3, 10, 8)
    dcp.save(
        {"decoder.layers.mlp.linear_fc2.weight": stack, "embedding.weight": torch.ones(9, 8)},
        checkpoint_id=str(tmp_path),
    )
    (tmp_path / "metadata.json").write_text('{"sharded_backend": "torch_dist"}')
    opened = open_checkpoint(tmp_path)
    assert opened.tensors["decoder.layers.1.mlp.linear_fc2.weight"].shape == (10, 8)
    assert torch.equal(opened.read("decoder.layers.1.mlp.linear_fc2.weight"), stack[1])
    assert torch.equal(opened.read_rows("decoder.layers.2.mlp.linear_fc2.weight", 2, 4), stack[2, 2:4])
    assert len(opened.tensors) == 4


class Evil:
    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (Path(self.mark),)


@pytest.fixture
def copy(saved, tmp_path):
    """A copy of the folder, and a function that writes its metadata anew after a change."""
    folder = tmp_path / "copy"
    folder.mkdir()
    for file in saved[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())

    def change(how):
        metadata = pickle.loads((folder / ".metadata").read_bytes())
        how(metadata)
        (folder / ".metadata").write_bytes(pickle.dumps(metadata))
        return folder

    return change


def test_a_chunk_that_asks_for_memory_by_a_number_is_refused(copy):
    """Its pickle is gone through before it is loaded, as that of any other file of torch.save."""
    file = copy(lambda _metadata: None) / "__0_0.distcp"
    stored = pickle.loads((file.parent / ".metadata").read_bytes()).storage_data
    info = next(item for item in stored.items() if item[0].fqn.endswith("0.weight") and "optim" not in item[0].fqn)
    data, (index, place) = bytearray(file.read_bytes()), info
    bomb = b"\x80\x02c__builtin__\nbytearray\n\x8a\x08" + (1 << 36).to_bytes(8, "little") + b"\x85R."
    chunk = io.BytesIO()
    with zipfile.ZipFile(chunk, "w") as archive:
        archive.writestr("archive/data.pkl", bomb)
        archive.writestr("archive/version", "3\n")
    left = place.length - len(chunk.getvalue())
    assert left >= 0
    with zipfile.ZipFile(chunk, "a") as archive:
        archive.comment = b" " * left
    data[place.offset : place.offset + place.length] = chunk.getvalue()
    file.write_bytes(data)
    with pytest.raises(UnreadableError, match="by a number"):
        open_checkpoint(file.parent).read(index.fqn.removeprefix("model."))


def test_code_in_the_metadata_and_in_a_chunk_never_runs(copy, tmp_path):
    mark = tmp_path / "ran"

    def poison(metadata):
        metadata.planner_data["x"] = Evil(mark)

    assert open_checkpoint(copy(poison)).read("0.bias").shape == (16,)
    assert not mark.exists()
    (tmp_path / "copy" / "__0_0.distcp").write_bytes(pickle.dumps(Evil(mark)).ljust(80000, b"\0"))
    with pytest.raises(UnreadableError, match="not a whole file"):
        open_checkpoint(tmp_path / "copy").read("0.weight")
    assert not mark.exists()


INDEX = MetadataIndex("model.0.weight", torch.Size([0, 0]), 0)


def place(**changes):
    def change(metadata):
        info = next(info for index, info in metadata.storage_data.items() if index == INDEX)
        for name, value in changes.items():
            object.__setattr__(info, name, value)

    return change


def chunks(*boxes):
    def change(metadata):
        found = metadata.state_dict_metadata["model.0.weight"]
        found.chunks[:] = [ChunkStorageMetadata(torch.Size(at), torch.Size(size)) for at, size in boxes]
        info = next(info for index, info in metadata.storage_data.items() if index == INDEX)
        metadata.storage_data |= {MetadataIndex("model.0.weight", torch.Size(at), 0): info for at, _ in boxes}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (place(relative_path="../secret"), "outside the model's folder"),
        (place(relative_path="/etc/passwd"), "outside the model's folder"),
        (place(relative_path="gone.distcp"), "is missing"),
        (place(offset=1 << 40), "would be bytes"),
        (place(offset=-5), "would be bytes"),
        (place(length=1 << 40), "would be bytes"),
        (chunks(((0, 0), (8, 12))), "do not fill it"),
        (chunks(((0, 0), (8, 12)), ((4, 0), (8, 12))), "do not fill it"),
        (chunks(((0, 0), (17, 12))), "outside its tensor"),
        (chunks(((0,), (192,))), "other axes"),
    ],
)
def test_metadata_that_lies(copy, change, message):
    with pytest.raises(UnreadableError, match=message):
        open_checkpoint(copy(change))


@pytest.mark.parametrize("keep", [0, 20, 500, -10])
def test_damaged_metadata(copy, keep):
    folder = copy(lambda m: None)
    (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes()[:keep])
    with pytest.raises(UnreadableError, match=r"whole pickle|holds no tensors"):
        open_checkpoint(folder)


def test_a_missing_file_of_chunks(copy):
    folder = copy(lambda m: None)
    (folder / "__0_0.distcp").unlink()
    with pytest.raises(UnreadableError, match=r"__0_0\.distcp' is missing"):
        open_checkpoint(folder)


def test_a_pickle_that_is_no_metadata(tmp_path):
    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(UnreadableError, match="not the metadata"):
        open_checkpoint(tmp_path)


def test_a_server_that_takes_no_pickles_takes_none_of_these(saved, monkeypatch):
    monkeypatch.setenv("TAILWISE_NO_PICKLE", "1")
    with pytest.raises(UnsafeError, match="NO_PICKLE refuses"):
        open_checkpoint(saved[0])


def test_a_chunk_that_unpacks_to_more_than_its_bytes(copy):
    folder, buffer = copy(lambda m: None), io.BytesIO()
    torch.save(torch.zeros(16, 12), buffer)
    packed = io.BytesIO()
    with zipfile.ZipFile(buffer) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name) + bytes(1 << 20) * name.endswith("/0"))
    change = place(offset=0, length=len(packed.getvalue()))
    folder = copy(change)
    (folder / "__0_0.distcp").write_bytes(packed.getvalue().ljust(80000, b"\0"))
    with pytest.raises(UnreadableError, match="not a whole file"):
        open_checkpoint(folder).read("0.weight")


def test_keys_whose_hash_would_not_end_are_refused(tmp_path):
    pairs = (b"0h%ch%c\x86q%c" % (i, i, i + 1) for i in range(60))
    doubled = b"(K\x01tq\x00" + b"".join(pairs)
    (tmp_path / ".metadata").write_bytes(b"\x80\x02}" + doubled + b"K\x01s.")
    with pytest.raises(UnreadableError, match="whole pickle"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_chunks_fill_a_tensor_where_each_entry_lies_in_one(axes):
    rng = np.random.default_rng(axes)
    shape, seen = (4, 3, 5)[:axes], {True: 0, False: 0}

    def cut(box):
        """Parts of a box, (offsets, sizes)."""
        offsets, sizes = box
        axis = int(rng.integers(axes))
        if sizes[axis] < 2 or rng.random() < 0.3:
            return [box]
        at = int(rng.integers(1, sizes[axis]))
        moved = [list(offsets), list(sizes), list(sizes)]
        moved[0][axis] += at
        moved[1][axis], moved[2][axis] = at, sizes[axis] - at
        return [*cut((offsets, tuple(moved[1]))), *cut((tuple(moved[0]), tuple(moved[2])))]

    for turn in range(300):
        boxes = cut(((0,) * axes, shape))
        if turn % 2 and len(boxes) > 1:  # one moves to another place, where it fits
            offsets, sizes = boxes[0]
            boxes[0] = (
                tuple(int(rng.integers(whole - size + 1)) for whole, size in zip(shape, sizes, strict=True)),
                sizes,
            )
        covered = np.zeros(shape, int)
        for offsets, sizes in boxes:
            covered[tuple(slice(at, at + size) for at, size in zip(offsets, sizes, strict=True))] += 1
        whole = bool((covered == 1).all())
        assert distributed._covers_once(shape, [distributed._Chunk(*box, "f", 0, 1) for box in boxes], "m") == whole
        seen[whole] += 1
    assert all(seen.values())


def test_many_chunks_along_the_second_axis_take_time_in_line():
    count = 100_000
    chunks_ = [distributed._Chunk((0, place), (1, 1), "f", 0, 1) for place in range(count)]
    distributed._check_tiles((1, count), chunks_, "m")
