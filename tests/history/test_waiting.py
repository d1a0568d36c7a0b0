"""What waits beside a store: it is counted, and taken in."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys

import pytest
from made_points import alarm, point

from tailwise.history.jsonl import to_line
from tailwise.history.queued import QueuedHistory
from tailwise.history.store import History
from tailwise.history.waiting import take_in


def spooled(tmp_path, count=41):
    """A store, and what a dead process left beside it."""
    where = tmp_path / "history.db"
    with History(where):
        pass
    folder = tmp_path / "history.db.spool"
    folder.mkdir()
    lines = [to_line(point(step)) for step in range(count - 1)] + [to_line(alarm(3))]
    (folder / "dead.spool.jsonl").write_text("\n".join(lines) + "\n")
    return where


def history(where, *options):
    environment = {name: value for name, value in os.environ.items() if name != "TAILWISE_STORE"}
    command = [sys.executable, "-P", "-m", "tailwise", "history", "--store", str(where), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)


def test_what_dead_processes_left_is_taken_in(tmp_path):
    where = spooled(tmp_path)
    found = take_in(where)
    assert (found.taken, found.left) == (41, 0)
    assert "41 that waited" in str(found)
    with History(where) as store:
        assert store.runs()[0].points == 40
        assert store.runs()[0].alarms == 1
    assert str(take_in(where)) == ""


def test_what_waits_beside_a_locked_database_is_counted(tmp_path):
    where = spooled(tmp_path)
    other = sqlite3.connect(where)
    other.execute("BEGIN IMMEDIATE")
    try:
        found = take_in(where, patience=0.1)
        assert (found.taken, found.left) == (0, 41)
        assert "41 points and alarms wait" in str(found)
        assert "locked" in str(found)
    finally:
        other.rollback()
        other.close()
    assert take_in(where).taken == 41


def test_what_a_living_process_has_is_left_to_it(tmp_path, monkeypatch):
    where = spooled(tmp_path)
    (tmp_path / "history.db.spool" / "dead.spool.jsonl").unlink()
    with QueuedHistory(where) as writer:
        writer._troubled, writer._next_try = True, 1e18
        monkeypatch.setattr(writer, "_try", lambda work: False)
        writer.write(point(5))
        found = take_in(where)
        assert (found.taken, found.left) == (0, 1)
        assert "the process that writes them" in str(found)


def test_a_place_without_a_store_or_a_spool_has_nothing(tmp_path):
    assert str(take_in(tmp_path / "absent.db")) == ""
    assert not (tmp_path / "absent.db").exists()


@pytest.mark.parametrize("locked", [False, True])
def test_the_command_says_what_waits_and_takes_it_in(tmp_path, locked):
    where = spooled(tmp_path)
    other = sqlite3.connect(where)
    if locked:
        other.execute("BEGIN IMMEDIATE")
    done = history(where)
    other.close()
    assert done.returncode == 0
    assert ("41 points and alarms wait" if locked else "41 that waited") in done.stderr
    assert ("no runs yet" in done.stdout) is locked
