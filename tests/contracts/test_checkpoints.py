"""Every format gives back the tensors that were put in, and fails the same way."""

from __future__ import annotations

import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from safetensors.torch import save, save_file

from tailwise.checkpoints.checkpoint import Checkpoint
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import TailwiseError, UnreadableError, UsageError

GENERATOR = torch.Generator().manual_seed(0)
TENSORS = {
    "embed.weight": torch.randn(40, 16, generator=GENERATOR),
    "layer.weight": torch.randn(16, 32, generator=GENERATOR).bfloat16(),
    "layer.bias": torch.randn(16, generator=GENERATOR).half(),
    "conv.weight": torch.randn(4, 3, 3, 3, generator=GENERATOR),
}


def _shards(folder, *, index):
    names = list(TENSORS)
    files = {f"model-0000{i + 1}-of-00002.safetensors": names[i::2] for i in range(2)}
    for file, inside in files.items():
        save_file({name: TENSORS[name] for name in inside}, folder / file)
    if index:
        weight_map = {name: file for file, inside in files.items() for name in inside}
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def _file(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def _torch(tmp_path, **options):
    torch.save(TENSORS, tmp_path / "model.pt", **options)
    return tmp_path / "model.pt"


def _gguf(tmp_path):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "model.gguf", "llama")
    for name, tensor in TENSORS.items():
        raw = tensor.view(torch.int16).numpy().view(np.uint8) if tensor.dtype == torch.bfloat16 else tensor.numpy()
        kind = gguf.GGMLQuantizationType.BF16 if tensor.dtype == torch.bfloat16 else None
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "model.gguf"


class _Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        for name, tensor in TENSORS.items():
            parent = self
            *path, leaf = name.split(".")
            for part in path:
                if not hasattr(parent, part):
                    parent.add_module(part, torch.nn.Module())
                parent = getattr(parent, part)
            parent.register_buffer(leaf, tensor)


def _memory_url(_):
    fsspec.filesystem("memory").pipe_file("/contract/model.safetensors", save(TENSORS))
    return "memory://contract/model.safetensors"


def _torch_bytes_url(_):
    buffer = BytesIO()
    torch.save(TENSORS, buffer)
    fsspec.filesystem("memory").pipe_file("/contract/model.pt", buffer.getvalue())
    return "memory://contract/model.pt"


def _arrays():
    """Arrays of NumPy, whose files have no bfloat16 but two bytes without a type."""
    return {
        name: tensor.view(torch.int16).numpy().view("V2") if tensor.dtype == torch.bfloat16 else tensor.numpy()
        for name, tensor in TENSORS.items()
    }


def _npz(tmp_path):
    np.savez(tmp_path / "model.npz", **_arrays())
    return tmp_path / "model.npz"


def _hdf5(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "model.h5", "w") as file:
        for name, array in _arrays().items():
            file.create_dataset(name, data=array)
    return tmp_path / "model.h5"


def _onnx(tmp_path, **options):
    onnx = pytest.importorskip("onnx")
    kinds = {torch.float32: 1, torch.float16: 10, torch.bfloat16: 16}
    constants = [
        onnx.helper.make_tensor(
            name, kinds[t.dtype], t.shape, t.contiguous().view(torch.uint8).numpy().tobytes(), raw=True
        )
        for name, t in TENSORS.items()
    ]
    graph = onnx.helper.make_graph([], "g", [], [], constants)
    onnx.save(onnx.helper.make_model(graph), tmp_path / "model.onnx", **options)
    return tmp_path / "model.onnx"


def _distributed(tmp_path):
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is one process
        dcp.save(dict(TENSORS), checkpoint_id=str(tmp_path / "dcp"))
    return tmp_path / "dcp"


def _ranks(tmp_path):
    """As Meta's ranks hold it: no layer here is one that they split, so each holds all."""
    for rank, names in enumerate((list(TENSORS)[:2], list(TENSORS)[2:])):
        torch.save({name: TENSORS[name] for name in names}, tmp_path / f"consolidated.{rank:02d}.pth")
    return tmp_path


FORMATS = {
    "safetensors": _file,
    "folder": lambda path: _file(path).parent,
    "shards": partial(_shards, index=False),
    "index": partial(_shards, index=True),
    "torch": _torch,
    "torch-legacy": partial(_torch, _use_new_zipfile_serialization=False),
    "gguf": _gguf,
    "npz": _npz,
    "hdf5": _hdf5,
    "onnx": _onnx,
    "onnx-external": partial(_onnx, save_as_external_data=True, location="data", size_threshold=0),
    "distributed": _distributed,
    "ranks": _ranks,
    "module": lambda _: _Module(),
    "dict": lambda _: TENSORS,
    "file-url": lambda path: f"file://{_file(path)}",
    "memory-url": _memory_url,
    "memory-url-torch": _torch_bytes_url,
    "http": _file,
}


class _Ranges(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass

    def send_head(self):
        data = Path(self.translate_path(self.path)).read_bytes()
        asked = self.headers.get("Range")
        first, last = (int(end) for end in asked.removeprefix("bytes=").split("-")) if asked else (0, len(data) - 1)
        part = data[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        return BytesIO(part)


@pytest.fixture
def web(tmp_path):
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Ranges, directory=str(tmp_path)))
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}/"
    httpd.shutdown()
    thread.join()
    httpd.server_close()


@pytest.fixture(params=FORMATS)
def checkpoint(request, tmp_path):
    source = FORMATS[request.param](tmp_path)
    if request.param == "http":
        source = request.getfixturevalue("web") + source.name
    with open_checkpoint(source) as opened:
        yield opened


def test_is_a_checkpoint(checkpoint):
    assert isinstance(checkpoint, Checkpoint)
    assert checkpoint.format in {"safetensors", "torch", "gguf", "memory", "numpy", "keras", "onnx", "dcp"}
    assert isinstance(checkpoint.config, dict)
    assert isinstance(checkpoint.uri, str)


def test_specs(checkpoint):
    assert {name: spec.shape for name, spec in checkpoint.tensors.items()} == {
        name: tuple(tensor.shape) for name, tensor in TENSORS.items()
    }
    assert all(spec.name == name for name, spec in checkpoint.tensors.items())
    assert all(checkpoint.tensors[name].nbytes == tensor.nbytes for name, tensor in TENSORS.items())
    assert checkpoint.tensors["layer.weight"].dtype == "BF16"
    assert checkpoint.tensors["layer.bias"].dtype == "F16"
    assert checkpoint.nbytes == sum(tensor.nbytes for tensor in TENSORS.values())


def test_the_tensors_come_back(checkpoint):
    for name, tensor in TENSORS.items():
        got = checkpoint.read(name)
        assert got.dtype == tensor.dtype
        assert torch.equal(got, tensor)


@pytest.mark.parametrize("height", [1, 3, 100])
def test_row_blocks_make_the_tensor(checkpoint, height):
    for name, tensor in TENSORS.items():
        rows = tensor.shape[0]
        blocks = [checkpoint.read_rows(name, i, min(i + height, rows)) for i in range(0, rows, height)]
        assert torch.equal(torch.cat(blocks), tensor)


def test_no_rows(checkpoint):
    assert checkpoint.read_rows("embed.weight", 3, 3).shape == (0, 16)


@pytest.mark.parametrize(("start", "stop"), [(-1, 2), (0, 41), (5, 4), (41, 41)])
def test_rows_that_do_not_exist(checkpoint, start, stop):
    with pytest.raises(UnreadableError, match=r"embed\.weight.*do not exist"):
        checkpoint.read_rows("embed.weight", start, stop)


@pytest.mark.parametrize(
    "read", [lambda c, *a: c.read_rows(*a), lambda c, name, *_: c.read(name), lambda c, n, *_: c.identity(n)]
)
def test_an_unknown_name_suggests_the_nearest(checkpoint, read):
    if read(checkpoint, "embed.weight", 0, 1) is None:
        pytest.skip("nothing in memory has an identity")
    with pytest.raises(UsageError, match=r"did you mean embed\.weight"):
        read(checkpoint, "embed.weigth", 0, 1)


def test_closed(checkpoint):
    checkpoint.close()
    checkpoint.close()
    with pytest.raises(UnreadableError, match="closed"):
        checkpoint.read("embed.weight")


def test_threads_read_at_once(checkpoint):
    def read(row):
        return checkpoint.read_rows("embed.weight", row % 40, row % 40 + 1)

    with ThreadPoolExecutor(8) as pool:
        rows = list(pool.map(read, range(200)))
    assert torch.equal(torch.cat(rows[:40]), TENSORS["embed.weight"])
    assert torch.equal(torch.cat(rows[160:]), TENSORS["embed.weight"])


def test_identity_tells_tensors_apart(checkpoint):
    found = [checkpoint.identity(name) for name in TENSORS]
    assert found == [checkpoint.identity(name) for name in TENSORS]
    assert None in found or len(set(found)) == len(found)


def test_errors_are_ours_alone(checkpoint):
    for call in (lambda: checkpoint.read("nothing"), lambda: checkpoint.read_rows("conv.weight", 9, 10)):
        with pytest.raises(TailwiseError):
            call()
