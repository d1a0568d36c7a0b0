"""Remedies on two processes over gloo do what they do on one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from distributed_remedies import applied

SCRIPT = Path(__file__).with_name("distributed_remedies.py")


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """(kind, rank) → what the remedies did there."""
    folder = tmp_path_factory.mktemp("ranks")
    kinds = ("ddp", "fsdp", "fsdp1")
    ranks = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(folder), str(rank), *kinds],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        said = [rank.communicate(timeout=900)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0], "\n".join(said)
    return {(kind, rank): json.loads((folder / f"{kind}{rank}.json").read_text()) for kind in kinds for rank in (0, 1)}


@pytest.fixture(scope="module")
def alone():
    """The same in one process."""
    return json.loads(json.dumps(applied("none", 0)))


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_all_ranks_have_the_same(kind, found):
    assert found[kind, 0] == found[kind, 1]


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["norm", "averages", "penalty", "alphas", "factors", "drawn"])
def test_numbers_are_those_of_one_process(kind, what, found, alone):
    assert found[kind, 0][what] == pytest.approx(alone[what], rel=1e-4)


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
@pytest.mark.parametrize("what", ["clipped", "penalty_grad", "balanced", "reinitialized"])
def test_matrices_are_those_of_one_process(kind, what, found, alone):
    for name, values in alone[what].items():
        torch.testing.assert_close(torch.tensor(found[kind, 0][what][name]), torch.tensor(values), rtol=1e-3, atol=1e-5)


def test_flat_pieces_of_weights_are_refused_by_every_remedy(found):
    said = found["fsdp1", 0]
    assert len(said) == 5
    assert all("FSDP1" in text and "fully_shard" in text for text in said)
