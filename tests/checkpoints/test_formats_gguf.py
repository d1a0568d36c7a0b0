"""GGUF: shapes in torch's order, dequantization by blocks of rows, a config, and damage."""

from __future__ import annotations

import struct
import sys

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tailwise.checkpoints.formats.gguf import config_of
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError

gguf = pytest.importorskip("gguf")
Kind = gguf.GGMLQuantizationType
RNG = np.random.default_rng(0)


def write(path, tensors, settings=()):
    writer = gguf.GGUFWriter(path, "llama")
    for add in settings:
        add(writer)
    for name, (array, kind) in tensors.items():
        raw = array if kind is None else gguf.quants.quantize(array, kind)
        writer.add_tensor(name, raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


QUANTIZERS = [Kind.Q4_0, Kind.Q4_1, Kind.Q5_0, Kind.Q5_1, Kind.Q8_0]


@pytest.mark.parametrize("kind", QUANTIZERS, ids=lambda kind: kind.name)
def test_rows_are_dequantized_as_the_package_does(tmp_path, kind):
    array = RNG.standard_normal((24, 64)).astype(np.float32)
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", {"w": (array, kind)}))
    spec = checkpoint.tensors["w"]
    assert (spec.dtype, spec.shape) == (f"GGUF_{kind.name}", (24, 64))
    assert spec.nbytes == gguf.quants.quantize(array, kind).nbytes
    want = gguf.quants.dequantize(gguf.quants.quantize(array, kind), kind)
    assert np.array_equal(checkpoint.read("w").numpy(), want)
    assert np.array_equal(checkpoint.read_rows("w", 5, 9).numpy(), want[5:9])


@pytest.mark.parametrize("kind", [Kind.Q2_K, Kind.Q3_K, Kind.Q4_K, Kind.Q6_K, Kind.IQ4_XS, Kind.TQ2_0])
def test_packed_types_that_the_package_only_reads(tmp_path, kind):
    block, size = gguf.GGML_QUANT_SIZES[kind]
    raw = RNG.integers(0, 60, (6, 2 * size), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("w", raw, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    checkpoint = open_checkpoint(tmp_path / "m.gguf")
    assert checkpoint.tensors["w"].shape == (6, 2 * block)
    want = gguf.quants.dequantize(raw, kind)
    assert np.array_equal(checkpoint.read_rows("w", 2, 5).numpy(), want[2:5], equal_nan=True)


def test_experts_and_quantized_vectors(tmp_path):
    experts = RNG.standard_normal((3, 4, 32)).astype(np.float32)
    vector = RNG.standard_normal(64).astype(np.float32)
    path = write(tmp_path / "m.gguf", {"e": (experts, Kind.Q8_0), "v": (vector, Kind.Q8_0)})
    checkpoint = open_checkpoint(path)
    assert checkpoint.read_rows("e", 1, 3).shape == (2, 4, 32)
    assert torch.allclose(checkpoint.read("e"), torch.from_numpy(experts), atol=0.05)
    assert torch.allclose(checkpoint.read_rows("v", 3, 40), torch.from_numpy(vector[3:40]), atol=0.05)


def test_the_config_reads_like_hugging_faces(tmp_path):
    path = write(
        tmp_path / "m.gguf",
        {"w": (np.ones((2, 2), np.float32), None)},
        [
            lambda w: w.add_embedding_length(64),
            lambda w: w.add_block_count(3),
            lambda w: w.add_head_count(8),
            lambda w: w.add_head_count_kv([2, 2, 2]),
            lambda w: w.add_token_list(["a", "b"]),
        ],
    )
    config = open_checkpoint(path).config
    assert config["model_type"] == "llama"
    assert (config["hidden_size"], config["num_hidden_layers"], config["head_dim"]) == (64, 3, 8)
    assert (config["num_attention_heads"], config["num_key_value_heads"]) == (8, 2)


def test_parts_of_a_split_file_are_one_model(tmp_path):
    for i in (1, 2):
        write(tmp_path / f"m-0000{i}-of-00002.gguf", {f"w{i}": (np.full((2, 2), i, np.float32), None)})
    for source in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        assert open_checkpoint(source).tensors.keys() == {"w1", "w2"}
    (tmp_path / "m-00002-of-00002.gguf").unlink()
    for source in (tmp_path, tmp_path / "m-00001-of-00002.gguf"):
        with pytest.raises(UnreadableError, match="m-00002-of-00002"):
            open_checkpoint(source)


def test_from_afar_by_ranges(tmp_path):
    array = RNG.standard_normal((24, 64)).astype(np.float32)
    path = write(tmp_path / "m.gguf", {"w": (array, Kind.Q8_0)})
    fsspec.filesystem("memory").pipe_file("/gguf/m.gguf", path.read_bytes())
    far = open_checkpoint("memory://gguf/m.gguf")
    assert torch.equal(far.read("w"), open_checkpoint(path).read("w"))


def patched(path, *, type_id):
    """The file with the type of its only tensor replaced."""
    data = bytearray(path.read_bytes())
    place = data.index(b"the.tensor") + len(b"the.tensor") + 4 + 2 * 8
    data[place : place + 4] = struct.pack("<I", type_id)
    path.write_bytes(bytes(data))
    return path


@pytest.mark.parametrize(("type_id", "name"), [(int(Kind.Q8_K), "Q8_K"), (999, "number 999")])
def test_types_that_cannot_be_dequantized_are_listed_and_named(tmp_path, type_id, name):
    array = RNG.standard_normal((8, 512)).astype(np.float32)
    path = patched(write(tmp_path / "m.gguf", {"the.tensor": (array, None)}), type_id=type_id)
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["the.tensor"].dtype.startswith("GGUF_")
    with pytest.raises(UnreadableError, match=f"the.tensor: .*{name}"):
        checkpoint.read_rows("the.tensor", 0, 1)


def test_a_truncated_file(tmp_path):
    path = write(tmp_path / "m.gguf", {"w": (np.ones((40, 40), np.float32), None)})
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UnreadableError, match="tensor w: data ends before"):
        open_checkpoint(path)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_unreadable(tmp_path, data):
    path = tmp_path / "m.gguf"
    if not path.exists():
        write(path, {"w": (np.ones((4, 32), np.float32), Kind.Q8_0)}, [lambda w: w.add_token_list(["a"] * 3)])
        (tmp_path / "good").write_bytes(path.read_bytes())
    good = bytearray((tmp_path / "good").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(4, len(good) - 1))] = data.draw(st.sampled_from([0, 1, 8, 9, 127, 255]))
    path.write_bytes(bytes(good[: data.draw(st.integers(4, len(good)))]))
    try:
        with open_checkpoint(path) as checkpoint:
            for name in checkpoint.tensors:
                checkpoint.read(name)
    except UnreadableError:
        pass


def test_without_the_package(tmp_path, monkeypatch):
    path = write(tmp_path / "m.gguf", {"w": (np.ones((2, 2), np.float32), None)})
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(UsageError, match=r'pip install "tailwise\[gguf\]"'):
        open_checkpoint(path)


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q4_0, None], ids=lambda kind: kind.name if kind else "F32")
@pytest.mark.parametrize("shape", [(32, 24, 3, 3), (128, 48)])
def test_a_tensor_has_the_shape_that_comfyui_stores_beside_its_rows_of_256(tmp_path, kind, shape):
    stored = RNG.standard_normal(shape).astype(np.float32).reshape(-1, 256)
    said = [lambda w: w.add_array("comfy.gguf.orig_shape.w", list(shape))]
    checkpoint = open_checkpoint(write(tmp_path / "m.gguf", {"w": (stored, kind)}, said))
    assert checkpoint.tensors["w"].shape == shape
    want = stored if kind is None else gguf.quants.dequantize(gguf.quants.quantize(stored, kind), kind)
    want = want.reshape(shape)
    assert np.array_equal(checkpoint.read("w").numpy(), want)
    for start, stop in [(0, 1), (3, 4), (5, 17), (31, 32), (7, 7)]:
        assert np.array_equal(checkpoint.read_rows("w", start, stop).numpy(), want[start:stop])


def test_a_shape_that_does_not_hold_the_entries_is_damage(tmp_path):
    said = [lambda w: w.add_array("comfy.gguf.orig_shape.w", [3, 256])]
    with pytest.raises(UnreadableError, match=r"says the shape .* and 1024 entries are stored"):
        open_checkpoint(write(tmp_path / "m.gguf", {"w": (np.zeros((4, 256), np.float32), None)}, said))


@pytest.mark.parametrize("said", [True, False])
def test_an_importance_matrix_is_no_model(tmp_path, said):
    sums = np.ones((16, 64), np.float32)
    tensors = {"blk.0.ffn_down_exps.weight.in_sum2": (sums, None), "blk.0.ffn_down_exps.weight.counts": (sums, None)}
    path = write(tmp_path / "m.gguf", tensors, [lambda w: w.add_type("imatrix")] if said else ())
    with pytest.raises(UnreadableError, match=r"importance matrix .* statistics of activations and no weights"):
        open_checkpoint(path)


@pytest.mark.parametrize(("number", "owner"), [(144, "ik_llama.cpp"), (36, "bitnet.cpp"), (31, "dropped")])
def test_types_of_forks_are_unsupported_and_the_rest_is_read(tmp_path, number, owner):
    path = write(tmp_path / "m.gguf", {"blk.0.ffn_down.weight": (np.ones((64, 64), np.float32), None),
                                       "blk.0.attn_q.weight": (np.ones((64, 64), np.float32), None)})  # fmt: skip
    data = bytearray(path.read_bytes())
    name = b"blk.0.ffn_down.weight"
    struct.pack_into("<I", data, data.find(name) + len(name) + 4 + 16, number)
    path.write_bytes(data)
    checkpoint = open_checkpoint(path)
    assert owner in checkpoint.unsupported["blk.0.ffn_down.weight"]
    assert checkpoint.read("blk.0.attn_q.weight").shape == (64, 64)


def claimed(entries, kind, size, path):
    """A header with one list of so many entries of a type, each of so many bytes; the file has holes, and no data."""
    key = b"tokenizer.ggml.tokens"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", len(key)) + key
    path.write_bytes(head + struct.pack("<IIQ", 9, kind, entries))
    with path.open("r+b") as file:
        file.truncate(len(head) + 16 + entries * size)
    return path


@pytest.mark.parametrize(("kind", "size"), [(0, 1), (6, 4), (8, 8)])
def test_lists_of_a_header_that_no_model_has_are_refused_before_they_are_made(tmp_path, kind, size):
    with pytest.raises(UnreadableError, match="no model has"):
        open_checkpoint(claimed(20_000_000, kind, size, tmp_path / "x.gguf"))


def test_more_tensors_than_any_model_has_are_refused(tmp_path):
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2_000_000, 0))
    with path.open("r+b") as file:
        file.truncate(100_000_000)
    with pytest.raises(UnreadableError, match="claims 2000000 tensors"):
        open_checkpoint(path)


@pytest.mark.parametrize("value", [[[1, 2], [3]], [[]], [[1], [1]]])
def test_settings_of_layers_that_are_lists_are_no_settings_of_the_model(value):
    assert config_of({"general.architecture": "llama", "llama.block_count": value})["model_type"] == "llama"
