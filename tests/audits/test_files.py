"""An audit on disk is the audit, whole or not at all; what is not an audit is told so and never overwritten."""

from __future__ import annotations

import itertools
import json
import os
import stat
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tailwise as tw
from tailwise.audits.codec import FORMAT, MEMBERS

RNG = np.random.default_rng(1)
MODEL = {
    "model.layers.0.mlp.up_proj.weight": RNG.standard_normal((60, 50)),
    "model.layers.0.mlp.down_proj.weight": RNG.standard_normal((50, 60)),
    "model.layers.1.mlp.up_proj.weight": RNG.standard_normal((12, 12)),
    "model.norm.weight": np.ones(50),
    "head.weight": RNG.standard_normal((3, 50)),
    "conv.weight": RNG.standard_normal((16, 12, 3, 3)),
    "broken.weight": np.full((20, 20), np.nan),
}
SPECTRUM_FACTS = ("rows", "cols", "slices", "solver", "error_bound")


@pytest.fixture(scope="module")
def audit():
    return tw.audit(MODEL, use_cache=False, randomize=2, estimator="farms", farms_window=16, conv="pooled")


@pytest.fixture(params=["file", "folder"])
def target(request, tmp_path):
    return f"{tmp_path}/result.audit" if request.param == "file" else f"{tmp_path}/results/"


def bits(spectrum) -> tuple:
    return spectrum.eigenvalues.tobytes(), *(getattr(spectrum, name) for name in SPECTRUM_FACTS)


def assert_equal(one: tw.Audit, other: tw.Audit) -> None:
    assert one.rows == other.rows
    assert one.provenance == other.provenance
    assert one.table(unmeasured=True).arrow.equals(other.table(unmeasured=True).arrow)
    assert [layer.row.name for layer in one] == [layer.row.name for layer in other]
    for mine, theirs in zip(one, other, strict=True):
        assert bits(mine.spectrum) == bits(theirs.spectrum)
        assert [bits(s) for s in mine.permuted] == [bits(s) for s in theirs.permuted]
        assert (mine.windows is None) == (theirs.windows is None)
        assert mine.windows is None or bits(mine.windows) == bits(theirs.windows)


def test_what_is_loaded_is_what_was_saved_bit_for_bit(audit, target):
    assert {row.status for row in audit.rows} == {"OK", "NOT_A_MATRIX", "NOT_FINITE", "TOO_SMALL"}
    written = audit.save(target)
    assert_equal(tw.Audit.load(written), audit)
    assert written.is_dir() == target.endswith("/")


def test_saving_again_gives_the_same_bytes(audit, tmp_path):
    one, other = (audit.save(tmp_path / name) for name in ("one.audit", "other.audit"))
    assert one.read_bytes() == other.read_bytes()


@pytest.mark.parametrize("weights", [np.ones(9), np.eye(20), np.eye(60) + 0.1 * RNG.random((60, 60))])
def test_audits_without_measured_layers_or_of_degenerate_and_few_survive_too(weights, tmp_path):
    small = tw.audit({"layer.weight": weights}, use_cache=False)
    assert_equal(tw.Audit.load(small.save(tmp_path / "small.audit")), small)


def test_a_saved_audit_replaces_an_audit(audit, target):
    other = tw.audit({"layer.weight": np.eye(30)}, use_cache=False)
    other.save(target)
    assert_equal(tw.Audit.load(audit.save(target)), audit)


def test_missing_folders_are_made_and_files_follow_the_umask(audit, tmp_path):
    before = os.umask(0o027)
    try:
        written = audit.save(tmp_path / "a" / "b" / "result.audit")
    finally:
        os.umask(before)
    assert stat.S_IMODE(written.stat().st_mode) == 0o640


@pytest.mark.parametrize("make", ["text", "zip", "folder"])
def test_a_foreign_file_or_folder_is_not_overwritten(audit, make, tmp_path):
    target = tmp_path / "precious"
    if make == "text":
        target.write_text("years of work")
    elif make == "zip":
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("thesis.tex", "years of work")
    else:
        target.mkdir()
        (target / "thesis.tex").write_text("years of work")
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    with pytest.raises(tw.UsageError, match="not an audit"):
        audit.save(target)
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_failed_write_leaves_the_old_audit_and_no_litter(audit, tmp_path, monkeypatch):
    old = tw.audit({"layer.weight": np.eye(30)}, use_cache=False)
    target = old.save(tmp_path / "result.audit")

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(tw.UnreadableError, match="No space left"):
        audit.save(target)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["result.audit"]
    assert_equal(tw.Audit.load(target), old)


def test_an_audit_that_is_not_there_says_how_to_make_one(tmp_path):
    with pytest.raises(tw.UnreadableError, match="no such audit") as caught:
        tw.Audit.load(tmp_path / "nowhere.audit")
    assert "tailwise audit" in caught.value.fix


def test_a_truncated_file_is_unreadable_at_every_length(audit, tmp_path):
    path = audit.save(tmp_path / "result.audit")
    whole = path.read_bytes()
    for length in range(0, len(whole), len(whole) // 60):
        path.write_bytes(whole[:length])
        with pytest.raises(tw.UnreadableError):
            tw.Audit.load(path)


def test_a_damaged_byte_gives_the_same_numbers_or_an_error_but_never_others(audit, tmp_path):
    path = audit.save(tmp_path / "result.audit")
    whole = path.read_bytes()
    reference = audit.table(unmeasured=True).arrow
    unreadable = 0
    directory = whole.index(b"PK\x01\x02")  # the next test damages what lies beyond
    for place in np.random.default_rng(0).integers(0, directory, 150).tolist():
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x55]) + whole[place + 1 :])
        try:
            loaded = tw.Audit.load(path)
        except tw.UnreadableError:
            unreadable += 1
            continue
        assert loaded.table(unmeasured=True).arrow.equals(reference)
    assert unreadable > 100


def test_a_damaged_directory_gives_the_same_numbers_or_an_error(audit, tmp_path):
    path = audit.save(tmp_path / "result.audit")
    whole = path.read_bytes()
    reference = audit.table(unmeasured=True).arrow
    places = range(whole.index(b"PK\x01\x02"), len(whole))
    unreadable = 0
    for place, mask in zip(places, itertools.cycle([0x01, 0x10, 0x63, 0xFF]), strict=False):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ mask]) + whole[place + 1 :])
        try:
            loaded = tw.Audit.load(path)
        except tw.UnreadableError:
            unreadable += 1
            continue
        assert loaded.table(unmeasured=True).arrow.equals(reference)
    assert unreadable > len(places) // 3


@pytest.mark.parametrize("name", MEMBERS)
def test_a_folder_with_a_missing_or_garbled_member_is_unreadable(audit, name, tmp_path):
    folder = audit.save(f"{tmp_path}/result/")
    (folder / name).write_bytes(b"garbage")
    with pytest.raises(tw.UnreadableError):
        tw.Audit.load(folder)
    (folder / name).unlink()
    with pytest.raises(tw.UnreadableError):
        tw.Audit.load(folder)


@pytest.mark.parametrize("version", [FORMAT + 1, 0, "1", None])
def test_an_audit_of_another_version_says_so(audit, version, tmp_path):
    folder = audit.save(f"{tmp_path}/result/")
    path = folder / "provenance.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "audit_format": version}))
    with pytest.raises(tw.UnreadableError, match="another version"):
        tw.Audit.load(folder)


def test_eigenvalues_that_cannot_be_are_refused(audit, tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    folder = audit.save(f"{tmp_path}/result/")
    table = pq.read_table(folder / "spectra.parquet")
    values = table.column("eigenvalues").to_pylist()
    values[0] = values[0][::-1]
    swapped = table.set_column(table.column_names.index("eigenvalues"), "eigenvalues", pa.array(values))
    pq.write_table(swapped, folder / "spectra.parquet")
    with pytest.raises(tw.UnreadableError, match="ascending"):
        tw.Audit.load(folder)


def test_plain_parquet_readers_read_the_numbers(audit, tmp_path):
    import pyarrow.parquet as pq

    folder = audit.save(f"{tmp_path}/result/")
    layers, spectra = pq.read_table(folder / "layers.parquet"), pq.read_table(folder / "spectra.parquet")
    assert layers.column("name").to_pylist() == [row.name for row in audit.rows]
    assert set(spectra.column("kind").to_pylist()) == {"weights", "permuted", "windows"}
    assert json.loads((folder / "provenance.json").read_text())["recipe"]["randomize"] == 2
