"""What a workspace finds, names, reads and refuses."""

import os
from pathlib import Path

import pytest

import tailwise as tw
from tailwise.app.workspace import links
from tailwise.app.workspace.workspace import Workspace


def test_finds_files_and_folders_and_nothing_else(folder):
    found = Workspace([folder]).entries()
    assert sorted(entry.title for entry in found) == ["one", "runs/two"]
    assert {entry.kind for entry in found} == {"audit"}


def test_identities_stay_when_a_root_moves(folder, tmp_path_factory):
    before = {entry.title: entry.id for entry in Workspace([folder]).entries()}
    moved = tmp_path_factory.mktemp("moved") / "there"
    folder.rename(moved)
    assert {entry.title: entry.id for entry in Workspace([moved]).entries()} == before


def test_twins_under_two_roots_have_two_names(tmp_path, audit):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        audit.save(tmp_path / name / "same.audit")
    found = Workspace([tmp_path / "a", tmp_path / "b"]).entries()
    assert len({entry.id for entry in found}) == 2


def test_a_root_within_a_root_shows_nothing_twice(folder):
    found = Workspace([folder, folder / "runs"]).entries()
    assert sorted(entry.title for entry in found) == ["one", "runs/two"]


def test_reads_what_it_found_and_keeps_it(folder, audit):
    workspace = Workspace([folder])
    name = next(entry.id for entry in workspace.entries() if entry.title == "one")
    assert [row.name for row in workspace.audit(name).rows] == [row.name for row in audit.rows]
    assert workspace.audit(name) is workspace.audit(name)
    assert workspace.diagnosis(name).looked
    assert workspace.comparison(name, name).identical


def test_a_changed_file_is_read_again(folder, audit):
    workspace = Workspace([folder])
    name = next(entry.id for entry in workspace.entries() if entry.title == "one")
    before = workspace.audit(name)
    audit.save(folder / "one.audit")
    os.utime(folder / "one.audit", (1, 1))
    workspace._scan(again=True)
    assert workspace.audit(name) is not before


def test_unknown_names_are_told_with_near_ones(folder):
    with pytest.raises(tw.UsageError, match="did you mean"):
        Workspace([folder]).audit("one-fcf52")


def test_a_missing_root_is_told(tmp_path):
    with pytest.raises(tw.UsageError, match="no such"):
        Workspace([tmp_path / "absent"])


@pytest.mark.parametrize("path", ["../outside", "/etc/passwd", "runs/../../x", "link"])
def test_paths_stay_below_the_roots(folder, path):
    (folder.parent / "outside").mkdir(exist_ok=True)
    (folder / "link").symlink_to("/etc")
    with pytest.raises(tw.UsageError, match="not below"):
        Workspace([folder]).confined(path)


def test_paths_below_the_roots_are_taken(folder):
    assert Workspace([folder]).confined("runs") == (folder / "runs").resolve()
    assert Workspace([folder / "one.audit"]).confined("one.audit") == Path(folder / "one.audit").resolve()


def test_a_file_that_is_given_does_not_open_its_folder(folder):
    with pytest.raises(tw.UsageError, match="not below a folder"):
        Workspace([folder / "one.audit"]).confined(folder / "runs")


def test_a_store_that_was_not_given_is_told(folder):
    with pytest.raises(tw.UsageError, match=r"store='history\.db'"):
        _ = Workspace([folder]).history


def test_addresses_escape_what_names_may_hold():
    assert links.layer("m", "a/b<script>&c=1") == "/models/m/layer?name=a%2Fb%3Cscript%3E%26c%3D1"
    assert links.model("../x") == "/models/..%2Fx"
