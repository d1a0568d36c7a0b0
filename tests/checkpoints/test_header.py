"""The safetensors header: what the library accepts reads the same, and every lie is one clear error."""

from __future__ import annotations

import json
import struct
import tracemalloc

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save, save_file

from tailwise.checkpoints.bytesource import LocalFile
from tailwise.checkpoints.checkpoint import DTYPE_BITS
from tailwise.checkpoints.formats.common import torch_dtypes
from tailwise.checkpoints.open import open_checkpoint
from tailwise.checkpoints.sniff import parse_header
from tailwise.core.errors import UnreadableError


def write(path, header, data=b"", *, length=None):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(dtype="F32", shape=(2, 2), offsets=(0, 16)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@pytest.mark.parametrize("code", sorted(DTYPE_BITS))
def test_every_dtype_reads_as_the_library_reads_it(tmp_path, code):
    dtype = torch_dtypes()[code]
    raw = torch.arange(6 * 4 * DTYPE_BITS[code] // 8, dtype=torch.uint8) % (2 if code == "BOOL" else 251)
    tensor = raw.view(dtype).reshape(6, 4)
    path = write(tmp_path / "m.safetensors", {"w": entry(code, (6, 4), (0, raw.numel()))}, raw.numpy().tobytes())
    checkpoint = open_checkpoint(path)
    assert checkpoint.tensors["w"].dtype == code
    got = checkpoint.read("w")
    assert got.dtype == dtype
    assert torch.equal(got.view(torch.uint8), tensor.view(torch.uint8))
    if code != "F8_E8M0":  # not every release of the library knows it
        theirs = load_file(path)["w"]
        assert theirs.dtype == dtype
        assert torch.equal(got.view(torch.uint8), theirs.view(torch.uint8))


def test_a_file_of_the_library_reads_the_same(tmp_path):
    saved = {
        "a": torch.randn(3, 5),
        "b.c": torch.randn(2).double(),
        "scalar": torch.tensor(2),
        "none": torch.empty(0, 4),
    }
    save_file(saved, tmp_path / "m.safetensors", metadata={"format": "pt"})
    checkpoint = open_checkpoint(tmp_path / "m.safetensors")
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.tensors.keys() == saved.keys()
    for name, tensor in saved.items():
        assert torch.equal(checkpoint.read(name), tensor)
        assert checkpoint.read(name).shape == tensor.shape


LIES = {
    "an unknown shape": ({"w": entry(shape=(-1, 2))}, "non-negative integers"),
    "a boolean axis": ({"w": entry(shape=(True, 4))}, "non-negative integers"),
    "a float axis": ({"w": entry(shape=(2.0, 2))}, "non-negative integers"),
    "an overflowing shape": ({"w": entry(shape=(1 << 40, 1 << 40))}, "overflows"),
    "an overflow hidden by a zero": ({"w": entry(shape=(1 << 40, 1 << 40, 0), offsets=(0, 0))}, "overflows"),
    "a hundred axes": ({"w": entry(shape=(1,) * 100)}, "at most 64"),
    "a size that is not the shape's": ({"w": entry(shape=(2, 3))}, "takes 24 bytes, the header gives it 16"),
    "an end before the start": ({"w": entry(offsets=(16, 0))}, "not a start and an end"),
    "one offset": ({"w": entry(offsets=(16,))}, "not a start and an end"),
    "a negative offset": ({"w": entry(offsets=(-16, 0))}, "not a start and an end"),
    "data past the end": ({"w": entry(shape=(2, 4), offsets=(0, 32))}, "data ends before tensor 'w'"),
    "an overlap": ({"w": entry(), "v": entry(shape=(2,), offsets=(8, 16))}, "'w' and 'v' overlap"),
    "a hole": ({"w": entry(shape=(2,), offsets=(8, 16))}, "8 bytes before tensor 'w' belong to no tensor"),
    "data after the last": (
        {"w": entry(shape=(2,), offsets=(0, 8))},
        "8 bytes after 'w' belong to no tensor",
    ),
    "no dtype": ({"w": {"shape": [2, 2], "data_offsets": [0, 16]}}, "lacks one of dtype"),
    "a dtype that is a number": ({"w": entry(dtype=7)}, "not a short text"),
    "an entry that is a list": ({"w": [1, 2]}, "lacks one of dtype"),
    "a list": ([1, 2], "a JSON list"),
    "metadata that is not text": ({"__metadata__": {"a": 1}, "w": entry()}, "__metadata__"),
    "a name that is not Unicode": (
        b'{"\\ud800": {"dtype":"F32","shape":[4],"data_offsets":[0,16]}}',
        "Unicode",
    ),
    "a name twice": (b'{"w": {}, "w": {}}', "the key 'w' appears twice"),
    "no JSON": (b"{", "not valid JSON"),
    "no UTF-8": (b"{\xff\xff}", "not valid JSON"),
    "a number of thousands of digits": (b'{"w": ' + b"9" * 5000 + b"}", "not valid JSON"),
    "nesting without end": (b'{"w":' + b"[" * 200_000, "nested too deeply"),
}


@pytest.mark.parametrize(("header", "message"), LIES.values(), ids=LIES.keys())
def test_a_lie_is_one_clear_error(tmp_path, header, message):
    path = write(tmp_path / "m.safetensors", header, bytes(16))
    with pytest.raises(UnreadableError, match=r"m\.safetensors") as caught:
        open_checkpoint(path)
    assert message in str(caught.value)
    assert caught.value.fix


@pytest.mark.parametrize("length", [1 << 63, (1 << 64) - 1, 200_000_000, 10_000])
def test_a_claimed_header_length_is_not_allocated(tmp_path, length):
    path = write(tmp_path / "m.safetensors", {"w": entry()}, bytes(16), length=length)
    tracemalloc.start()
    with pytest.raises(UnreadableError, match="claims a header of"):
        open_checkpoint(path)
    assert tracemalloc.get_traced_memory()[1] < 5_000_000
    tracemalloc.stop()


def test_an_unknown_dtype_fails_when_it_is_read_and_is_named(tmp_path):
    header = {"odd": entry("F4_MAGIC", (2, 2), (0, 2)), "w": entry(offsets=(2, 18))}
    checkpoint = open_checkpoint(write(tmp_path / "m.safetensors", header, bytes(18)))
    assert checkpoint.tensors["odd"].dtype == "F4_MAGIC"
    assert checkpoint.tensors["odd"].nbytes == 2
    with pytest.raises(UnreadableError, match="tensor odd: the dtype F4_MAGIC is not one"):
        checkpoint.read("odd")
    assert torch.equal(checkpoint.read("w"), torch.zeros(2, 2))


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40, -1])
def test_a_truncated_file(tmp_path, keep):
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"w": torch.randn(8, 8)})[:keep])
    with pytest.raises(UnreadableError, match="download") as caught:
        open_checkpoint(path)
    if keep == -1:
        assert "data ends before tensor 'w'" in str(caught.value)


def test_a_file_that_shrinks_after_it_was_opened(tmp_path):
    path = tmp_path / "m.safetensors"
    path.write_bytes(save({"w": torch.randn(8, 8)}))
    checkpoint = open_checkpoint(path)
    with path.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(UnreadableError, match="earlier than when it was opened"):
        checkpoint.read("w")


names = st.text(max_size=5)
numbers = st.one_of(st.integers(-3, 40), st.integers(), st.booleans(), st.floats(allow_nan=False), st.none())
entries = st.fixed_dictionaries(
    {},
    optional={
        "dtype": st.one_of(st.sampled_from([*DTYPE_BITS, "F4", ""]), numbers),
        "shape": st.one_of(st.lists(st.one_of(st.integers(0, 4), numbers), max_size=4), numbers),
        "data_offsets": st.one_of(st.lists(st.one_of(st.integers(0, 40), numbers), max_size=3), numbers),
    },
)
headers = st.dictionaries(names, st.one_of(entries, numbers), max_size=4)


@settings(max_examples=300, deadline=None)
@given(header=headers, size=st.integers(0, 64))
def test_any_json_is_valid_or_unreadable(header, size):
    _parse(json.dumps(header).encode(), size)


@settings(max_examples=300, deadline=None)
@given(text=st.binary(max_size=80), size=st.integers(0, 64))
def test_any_bytes_are_valid_or_unreadable(text, size):
    _parse(text, size)


def _parse(text, size):
    try:
        header = parse_header(text, data_bytes=size, where="here")
    except UnreadableError:
        return
    base = 8 + len(text)
    for name, spec in header.specs.items():
        assert base <= header.offsets[name] <= header.offsets[name] + spec.nbytes <= base + size


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_reads_as_the_library_reads_it_or_not_at_all(tmp_path, data):
    good = bytearray(save({"a": torch.arange(6.0).reshape(2, 3), "b": torch.arange(4)}, {"k": "v"}))
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, 120))] = data.draw(st.integers(0, 255))
    path = tmp_path / "m.safetensors"
    path.write_bytes(bytes(good))
    try:
        with open_checkpoint(path) as checkpoint:
            ours = {n: checkpoint.read(n) for n, s in checkpoint.tensors.items() if s.dtype in torch_dtypes()}
    except UnreadableError:
        return
    try:
        with safe_open(path, "pt") as theirs:
            read = {name: theirs.get_tensor(name) for name in ours}
    except SafetensorError:  # it refuses more than sizes that lie, such as a header that is not padded
        return
    assert all(torch.equal(ours[name].view(torch.uint8), read[name].view(torch.uint8)) for name in ours)


def test_a_block_costs_one_block(tmp_path):
    path = tmp_path / "m.safetensors"
    save_file({"w": torch.zeros(1000, 1000)}, path)
    source = LocalFile(path)
    tracemalloc.start()
    checkpoint = open_checkpoint(path)
    checkpoint.read_rows("w", 10, 20)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    source.close()
