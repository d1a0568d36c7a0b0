"""fsspec addresses: byte ranges only, and what to do when they cannot be had."""

from __future__ import annotations

import json
import sys

import fsspec
import pytest
import torch
from safetensors.torch import save

from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

W = torch.randn(500, 64)
DATA = save({"w": W, "v": W[:3].clone()})
HEADER = 8 + int.from_bytes(DATA[:8], "little")


def test_http_reads_headers_and_then_rows(server):
    server.files["/m.safetensors"] = DATA
    checkpoint = open_checkpoint(f"{server.url}/m.safetensors?signature=1")
    assert sum(count for _, count in server.served("/m.safetensors")) < HEADER + 100
    server.log.clear()
    assert checkpoint.read_rows("w", 10, 12).equal(W[10:12])
    assert [count for _, count in server.served("/m.safetensors")] == [2 * 64 * 4]
    assert checkpoint.identity("w") is not None


def test_a_server_without_ranges_is_told_before_anything_is_read(server):
    server.files["/m.safetensors"] = DATA
    server.ranges = False
    with pytest.raises(UnreadableError, match="does not serve byte ranges"):
        open_checkpoint(f"{server.url}/m.safetensors")


def test_a_server_that_stops_serving_ranges(server):
    server.files["/m.safetensors"] = DATA
    checkpoint = open_checkpoint(f"{server.url}/m.safetensors")
    server.ranges = False
    with pytest.raises(UnreadableError, match=r"were asked for and \d+ came"):
        checkpoint.read_rows("w", 0, 1)


def test_an_index_on_the_web(server):
    weight_map = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    server.files["/x/model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    for name, file in weight_map.items():
        server.files[f"/x/{file}"] = save({name: W})
    url = f"{server.url}/x/model.safetensors.index.json"
    assert open_checkpoint(url).read("b").equal(W)
    del server.files["/x/model-00002-of-00002.safetensors"]
    with pytest.raises(UnreadableError, match=r"model-00002-of-00002.safetensors: no such file"):
        open_checkpoint(url)


@pytest.mark.parametrize(
    ("status", "message"), [(404, "no such file"), (403, "access was denied"), (500, "could not be reached")]
)
def test_http_errors(server, status, message):
    server.errors["/"] = (status, "")
    with pytest.raises(UnreadableError, match=message):
        open_checkpoint(f"{server.url}/m.safetensors")


def test_a_pickle_on_the_web_is_copied_and_the_copy_removed(server, tmp_path, caplog):
    torch.save({"w": W}, tmp_path / "m.pt")
    server.files["/m.pt"] = (tmp_path / "m.pt").read_bytes()
    with open_checkpoint(f"{server.url}/m.pt") as checkpoint:
        assert checkpoint.read("w").equal(W)
        copies = [path for path in checkpoint._stamps if path.exists()]
        assert len(copies) == 1
    assert "downloading all" in caplog.text
    assert not copies[0].exists()


def test_a_folder_in_memory():
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/folder/model.safetensors", DATA)
    fs.pipe_file("/folder/config.json", b'{"model_type": "x"}')
    for url in ("memory://folder", "memory://folder/", "memory://folder/model.safetensors"):
        checkpoint = open_checkpoint(url)
        assert checkpoint.config == {"model_type": "x"}
        assert checkpoint.read("w").equal(W)
    before = checkpoint.identity("w")
    fs.pipe_file("/folder/model.safetensors", DATA)
    assert open_checkpoint("memory://folder").identity("w") != before
    with pytest.raises(UnreadableError, match="no such file"):
        open_checkpoint("memory://nothing/here.safetensors")


def test_an_unknown_scheme():
    with pytest.raises(UsageError, match="nothing:// is not a scheme"):
        open_checkpoint("nothing://x/y.safetensors")


@pytest.mark.parametrize(("url", "extra"), [("gs://b/m.safetensors", "gcs"), ("s3://b/m.safetensors", "s3")])
def test_a_missing_driver_names_the_extra(monkeypatch, url, extra):
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    monkeypatch.setitem(sys.modules, "s3fs", None)
    for known in ("s3", "s3a", "gs", "gcs"):  # by tests before this one
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, known, raising=False)
    with pytest.raises(UsageError, match=rf'pip install "tailwise\[{extra}\]"'):
        open_checkpoint(url)


def test_s3_by_ranges(s3, monkeypatch):
    s3.pipe_file("bucket/model/model.safetensors", DATA)
    s3.pipe_file("bucket/model/config.json", b'{"model_type": "x"}')
    asked = []
    cat = type(s3).cat_file
    monkeypatch.setattr(type(s3), "cat_file", lambda *a, **k: asked.append((a[1], k)) or cat(*a, **k))
    for url in ("s3://bucket/model", "s3://bucket/model/model.safetensors"):
        checkpoint = open_checkpoint(url)
        assert checkpoint.config == {"model_type": "x"}
        assert checkpoint.read_rows("w", 3, 5).equal(W[3:5])
    weights = [k["end"] - k["start"] for path, k in asked if path.endswith("safetensors")]
    assert sum(weights) < 2 * (HEADER + 64 + 2 * 64 * 4)
    before = checkpoint.identity("w")
    s3.pipe_file("bucket/model/model.safetensors", save({"w": W + 1}))
    assert open_checkpoint("s3://bucket/model").identity("w") != before


def test_s3_that_is_not_there(s3):
    for url in ("s3://bucket/nothing", "s3://no-such-bucket/m.safetensors"):
        with pytest.raises(UnreadableError, match="no such file or folder"):
            open_checkpoint(url)
