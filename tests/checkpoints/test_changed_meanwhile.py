"""A file that changes while it is read: what was opened, or an error; never a matrix of two states."""

import os

import numpy as np
import pytest
from safetensors.numpy import save, save_file

import tailwise as tw
from tailwise.checkpoints.open import open_checkpoint
from tailwise.core.errors import UnreadableError

RNG = np.random.default_rng(0)
BEFORE = {f"l.{n}.weight": RNG.standard_normal((40, 30)) for n in range(4)}
AFTER = {name: 2 * array for name, array in BEFORE.items()}


@pytest.fixture
def path(tmp_path):
    save_file(BEFORE, tmp_path / "model.safetensors")
    os.utime(tmp_path / "model.safetensors", (1, 1))  # so that a change is one, however coarse the clock is
    return tmp_path / "model.safetensors"


def in_place(path):
    with path.open("r+b") as file:
        file.write(save(AFTER))


def put_there(path):
    save_file(AFTER, path.with_suffix(".new"))
    path.with_suffix(".new").replace(path)


def cut_off(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("change", [in_place, cut_off])
def test_a_file_that_is_written_into_is_told(path, change):
    opened = open_checkpoint(path)
    change(path)
    with pytest.raises(UnreadableError, match=r"has changed|earlier than when it was opened"):
        opened.read("l.3.weight")


def test_a_file_that_another_takes_the_place_of_is_read_as_it_was(path):
    opened = open_checkpoint(path)
    put_there(path)
    assert opened.read("l.3.weight").tolist() == BEFORE["l.3.weight"].tolist()


@pytest.mark.parametrize("change", [in_place, put_there, cut_off, os.unlink])
def test_an_audit_has_rows_of_one_state_and_says_which_could_not_be_read(path, change):
    told = []

    def amid(step):
        if not told:
            told.append(step)
            change(path)

    expected = {layer.row.name: layer.spectrum.eigenvalues for layer in tw.audit(BEFORE, use_cache=False)}
    found = tw.audit(path, use_cache=False, workers=1, progress=amid)
    assert told
    assert len(found.rows) == 4
    for row in found.rows:
        if row.measured:
            np.testing.assert_allclose(found[row.name].spectrum.eigenvalues, expected[row.name], rtol=1e-9)
        else:
            assert row.status == "UNREADABLE"
    assert any(not row.measured for row in found.rows) == (change in (in_place, cut_off))
