"""Folders that hold what no one expects: pipes, links out, names that are no text, more files than can be looked at."""

import os
import threading
from pathlib import Path

import pytest

import tailwise as tw
import tailwise.core.errors
from tailwise.app.workspace import scan as scanning
from tailwise.app.workspace.workspace import Workspace
from tailwise.audits.codec import MEMBERS


def titles(workspace):
    return sorted(entry.title for entry in workspace.look_again())


@pytest.mark.parametrize("name", ["pipe.json", "pipe.audit"])
def test_a_pipe_is_not_waited_for(folder, name):
    os.mkfifo(folder / name)
    done = threading.Event()
    found = []

    def look():
        found.extend(titles(Workspace([folder])))
        done.set()

    threading.Thread(target=look, daemon=True).start()
    assert done.wait(30)
    assert found == ["one", "runs/two"]


def test_links_that_lead_out_are_not_shown(folder, tmp_path_factory, audit):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    audit.save(elsewhere / "secret.audit")
    audit.save(f"{elsewhere}/secrets/")
    (folder / "file.audit").symlink_to(elsewhere / "secret.audit")
    (folder / "folder").symlink_to(elsewhere / "secrets")
    (folder / "circle.audit").symlink_to("circle.audit")
    (folder / "within.audit").symlink_to(folder / "one.audit")
    (folder / "of links").mkdir()
    for name in MEMBERS:
        (folder / "of links" / name).symlink_to(elsewhere / "secrets" / name)
    assert titles(Workspace([folder])) == ["one", "runs/two", "within"]
    assert "file" in titles(Workspace([folder, elsewhere]))


def test_a_name_that_is_no_text_has_a_title_that_is(folder, audit):
    audit.save(folder / "a.audit")
    Path(os.fsdecode(os.fsencode(folder) + b"/\xff\xfe.audit")).write_bytes((folder / "a.audit").read_bytes())
    workspace = Workspace([folder])
    odd = next(entry for entry in workspace.entries() if "\N{REPLACEMENT CHARACTER}" in entry.title)
    odd.title.encode()
    assert workspace.audit(odd.id).model


def test_a_folder_that_may_not_be_looked_into_is_left_out(folder, monkeypatch):
    (folder / "closed").mkdir()
    real = os.stat

    def refused(path, *arguments, **options):
        if "closed/" in os.fspath(path) if not isinstance(path, int) else False:
            raise PermissionError(13, "Permission denied")
        return real(path, *arguments, **options)

    monkeypatch.setattr(os, "stat", refused)
    assert titles(Workspace([folder])) == ["one", "runs/two"]


def test_an_unchanged_file_is_opened_once(folder, monkeypatch, audit):
    opened = []
    kind = scanning._kind
    monkeypatch.setattr(scanning, "_kind", lambda path, facts: opened.append(path.name) or kind(path, facts))
    workspace = Workspace([folder])
    workspace.look_again()
    workspace.look_again()
    assert opened.count("one.audit") == 1
    audit.save(folder / "one.audit")
    os.utime(folder / "one.audit", (5, 5))
    assert next(entry for entry in workspace.look_again() if entry.title == "one").changed == 5
    assert opened.count("one.audit") == 2


def test_more_files_than_are_looked_at_are_told(folder, monkeypatch):
    workspace = Workspace([folder])
    assert workspace.entries()
    assert workspace.cut == ()
    monkeypatch.setattr(scanning, "_MOST", 1)
    workspace.look_again()
    assert workspace.cut == (folder.resolve(),)


@pytest.mark.parametrize("path", ["~nobody-of-that-name/x", "a" * 300, "b/" * 3000, "x\0y", "\ud800"])
def test_paths_that_cannot_be_are_told(folder, path):
    with pytest.raises(tw.UsageError, match="not below"):
        Workspace([folder]).confined(path)


def test_a_root_that_vanishes_is_empty_until_it_is_back(folder):
    workspace = Workspace([folder / "runs"])
    assert titles(workspace) == ["two"]
    (folder / "runs").rename(folder / "away")
    assert titles(workspace) == []
    (folder / "away").rename(folder / "runs")
    assert titles(workspace) == ["two"]


def test_who_waits_for_a_store_keeps_nobody_from_the_audits(folder, monkeypatch):
    from tailwise.history import store

    entered, leave = threading.Event(), threading.Event()

    class Slow:
        def __init__(self, where, create, patience):
            entered.set()
            leave.wait(30)

        def close(self):
            pass

    monkeypatch.setattr(store, "History", Slow)
    workspace = Workspace([folder], store="history.db")
    waiting = threading.Thread(target=lambda: workspace.history)
    waiting.start()
    assert entered.wait(30)
    done = threading.Event()
    threading.Thread(target=lambda: (workspace.look_again(), done.set()), daemon=True).start()
    assert done.wait(30)
    leave.set()
    waiting.join(30)


def test_a_store_that_is_away_is_asked_once_in_a_while(folder, monkeypatch):
    from tailwise.history import store

    asked = []

    def away(where, create, patience):
        asked.append(where)
        raise tw.errors.UnreachableError("could not be reached", where=where)

    monkeypatch.setattr(store, "History", away)
    workspace = Workspace([folder], store="history.db")
    for _ in range(10):
        with pytest.raises(tw.errors.UnreachableError):
            _ = workspace.history
    assert len(asked) == 1
    workspace._refused = (workspace._refused[0] - 60, workspace._refused[1])
    with pytest.raises(tw.errors.UnreachableError):
        _ = workspace.history
    assert len(asked) == 2


def test_an_archive_that_claims_to_lie_on_several_disks_is_passed_over(folder):
    locator = b"PK\x06\x07" + bytes(12) + (2).to_bytes(4, "little")
    (folder / "disks.audit").write_bytes(b"PK\x03\x04" + bytes(60) + locator + b"PK\x05\x06" + bytes(18))
    assert titles(Workspace([folder])) == ["one", "runs/two"]
