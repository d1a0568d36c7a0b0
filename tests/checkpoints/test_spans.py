"""Byte ranges that lie near each other are read at once, and parts of a checkpoint read as the whole does."""

from __future__ import annotations

import itertools
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tailwise.checkpoints.bytesource import ByteSource
from tailwise.checkpoints.formats.common import PART, HeldFile, coalesced
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError, UsageError


class Counted(ByteSource):
    """A file far away that notes what is asked for."""

    def __init__(self, data):
        self.name, self.size, self.asked, self._data = "far", len(data), [], data

    def read_into(self, buffer, offset):
        self.asked.append((offset, len(buffer)))
        buffer[:] = self._data[offset : offset + len(buffer)]

    def local_path(self):
        raise AssertionError


def test_neighbours_become_one_and_strangers_stay_apart():
    assert coalesced([(100, 10), (0, 90), (5000, 1)], gap=10) == [(0, 110), (5000, 1)]
    assert coalesced([(0, 50), (10, 10)], gap=0) == [(0, 50)]
    assert coalesced([]) == []


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(1, 60)), max_size=12), st.integers(0, 40))
def test_every_byte_is_covered_once_and_gaps_are_wider_than_allowed(spans, gap):
    joined = coalesced(spans, gap)
    wanted = {byte for start, size in spans for byte in range(start, start + size)}
    held = [byte for start, size in joined for byte in range(start, start + size)]
    assert wanted <= set(held)
    assert len(held) == len(set(held))
    assert all(b[0] - sum(a) > gap for a, b in itertools.pairwise(joined))


def test_what_is_held_is_not_asked_for_again_and_the_rest_is():
    far = Counted(bytes(range(256)) * 8)
    held = HeldFile(far, [(0, 100), (100, 50)])
    assert far.asked == [(0, 150)]
    assert held.read(30, 100) == far._data[30:130]
    assert far.asked == [(0, 150)]
    assert held.read(140, 20) == far._data[140:160]
    assert far.asked[1:] == [(140, 20)]


def test_a_long_range_from_afar_comes_in_parts():
    far = Counted(bytes(2 * PART + 5))
    HeldFile(far, [(0, far.size)])
    assert sorted(far.asked) == [(0, PART), (PART, PART), (2 * PART, 5)]


@pytest.fixture
def folder(tmp_path):
    tensors = {f"layers.{i}.weight": torch.randn(20, 30) for i in range(4)}
    save_file(tensors, tmp_path / "model.safetensors")
    return tmp_path


def test_a_part_travels_as_an_address_and_reads_the_same_bytes(folder):
    with open_checkpoint(folder) as checkpoint:
        names = ["layers.1.weight", "layers.2.weight"]
        packed = pickle.dumps(checkpoint.part(names))
        assert len(packed) < 1500
        part = pickle.loads(packed)
        assert list(part.tensors) == names
        part.fetch()
        for name in names:
            assert torch.equal(part.read(name), checkpoint.read(name))
            assert part.identity(name) == checkpoint.identity(name)
        with pytest.raises(UsageError, match="no tensor named"):
            part.read("layers.0.weight")
        part.close()


def test_a_part_does_not_depend_on_the_working_directory(folder, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(folder)
    with open_checkpoint("model.safetensors") as checkpoint:
        packed, expected = pickle.dumps(checkpoint.part(["layers.0.weight"])), checkpoint.read("layers.0.weight")
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    part = pickle.loads(packed)
    assert torch.equal(part.read("layers.0.weight"), expected)
    part.close()


def test_a_pickle_that_changed_is_not_read_by_its_old_address(tmp_path):
    torch.save({"a.weight": torch.zeros(10, 12)}, tmp_path / "model.pt")
    with open_checkpoint(tmp_path / "model.pt") as checkpoint:
        part = pickle.loads(pickle.dumps(checkpoint.part(["a.weight"])))
        assert part.read("a.weight").shape == (10, 12)
    torch.save({"a.weight": torch.ones(10, 12), "b": torch.ones(3)}, tmp_path / "model.pt")
    with pytest.raises(UnreadableError, match="has changed"):
        part.read("a.weight")


def test_a_file_of_the_source_is_left_open_by_its_part(folder):
    with open_checkpoint(folder) as checkpoint:
        checkpoint.part(["layers.0.weight"])
        assert checkpoint.read("layers.3.weight").shape == (20, 30)
