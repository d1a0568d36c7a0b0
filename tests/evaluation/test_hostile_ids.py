"""Files of token ids that stand for far more than they hold are refused before any of it is made."""

import pickle

import numpy as np
import pytest
import torch

from tailwise.core.errors import UnreadableError, UnsafeError, UsageError
from tailwise.models.evaluation.tokens import tokens_of


def refused(path, match):
    with pytest.raises(UnreadableError, match=match):
        tokens_of(path)


def test_an_expanded_tensor_is_not_unfolded(tmp_path):
    torch.save(torch.zeros(1, dtype=torch.int8).expand(10**12), tmp_path / "ids.pt")
    refused(tmp_path / "ids.pt", "repeated")


def test_nor_are_views_that_share_their_entries(tmp_path):
    torch.save(torch.zeros(5000, dtype=torch.int32).as_strided((4000, 10**6), (1, 0)), tmp_path / "ids.pt")
    refused(tmp_path / "ids.pt", "repeated")


def test_lists_of_lists_are_not_unfolded(tmp_path):
    inner = []
    for _ in range(40):
        inner = [inner, inner]
    torch.save(inner, tmp_path / "ids.pt")
    refused(tmp_path / "ids.pt", "unfolds")


def test_a_list_of_one_large_tensor_is_not(tmp_path):
    torch.save([torch.zeros(1000).int()] * 1000, tmp_path / "ids.pt")
    refused(tmp_path / "ids.pt", "one tensor")


def test_nothing_of_theirs_runs(tmp_path):
    (tmp_path / "ids.pt").write_bytes(pickle.dumps(print, protocol=2))
    refused(tmp_path / "ids.pt", "Python objects|pickle")


@pytest.mark.parametrize("claimed", [10**9, 10**15])
def test_an_array_has_what_its_file_holds(tmp_path, claimed):
    with (tmp_path / "ids.npy").open("wb") as file:
        header = {"descr": "<i8", "fortran_order": False, "shape": (claimed,)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(bytes(80))
    refused(tmp_path / "ids.npy", "token ids")


def test_an_archive_by_the_name_of_an_array_is_none(tmp_path):
    np.savez(tmp_path / "ids.npz", a=np.arange(5))
    (tmp_path / "ids.npz").rename(tmp_path / "ids.npy")
    refused(tmp_path / "ids.npy", "archive")


def test_a_tensor_without_values_is_told(tmp_path):
    torch.save(torch.zeros(8, dtype=torch.int64, device="meta"), tmp_path / "ids.pt")
    with pytest.raises(UsageError, match="token ids"):
        tokens_of(tmp_path / "ids.pt")


def test_a_server_takes_no_pickles_as_ids_either(tmp_path, monkeypatch):
    torch.save(torch.arange(8), tmp_path / "ids.pt")
    monkeypatch.setenv("TAILWISE_NO_PICKLE", "1")
    with pytest.raises(UnsafeError, match="refuses these"):
        tokens_of(tmp_path / "ids.pt")


@pytest.mark.parametrize(
    "saved", [torch.arange(20), torch.arange(40)[::2] // 2, list(range(20)), torch.arange(999).int()[:20]], ids=str
)
def test_honest_ids_are_read(tmp_path, saved):
    torch.save(saved, tmp_path / "ids.pt")
    assert tokens_of(tmp_path / "ids.pt").ids.tolist() == list(range(20))
