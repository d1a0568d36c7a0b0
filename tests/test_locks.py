"""Locks that processes share: what they leave, and what happens where there are none."""

import errno
import multiprocessing
import os
import threading

import pytest
from filelock import FileLock

from tailwise.checkpoints.draft import Draft
from tailwise.core.errors import UsageError
from tailwise.core.locks import held
from tailwise.history import spool as spools
from tailwise.history.spool import Spool

fcntl = pytest.importorskip("fcntl")


@pytest.fixture(params=[errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS], ids=errno.errorcode.get)
def without_locks(monkeypatch, request):
    """A file system that takes no locks."""

    def refused(*_):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refused)


def test_one_at_a_time_among_threads_and_processes(tmp_path):
    entered, order = threading.Event(), []

    def second():
        entered.wait()
        with held("k", tmp_path):
            order.append("second")

    thread = threading.Thread(target=second)
    thread.start()
    with held("k", tmp_path):
        entered.set()
        with pytest.raises(TimeoutError), FileLock(tmp_path / "locks" / "k", timeout=0.2):
            pass
        order.append("first")
    thread.join()
    assert order == ["first", "second"]
    assert not list((tmp_path / "locks").iterdir())


def test_who_waits_for_a_file_that_is_removed_holds_the_next_one(tmp_path):
    lock = tmp_path / "locks" / "k"
    lock.parent.mkdir()
    first, done = FileLock(lock), []
    first.acquire()

    def wait():
        with held("k", tmp_path):
            done.append(lock.exists())

    thread = threading.Thread(target=wait)
    thread.start()
    lock.unlink()
    first.release()
    thread.join()
    assert done == [True]


def _killed_while_it_holds(folder, ready):
    with held("k", folder):
        ready.set()
        os._exit(9)


def test_what_a_killed_process_held_is_free(tmp_path):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=_killed_while_it_holds, args=(tmp_path, ready))
    process.start()
    process.join()
    assert ready.is_set()
    assert process.exitcode == 9
    with held("k", tmp_path):
        pass


def test_the_work_is_done_where_no_lock_is_taken(tmp_path, without_locks):
    done = []
    with held("k", tmp_path):
        done.append(1)
    assert done == [1]
    assert not list((tmp_path / "locks").iterdir())


def test_the_work_is_done_where_no_lock_can_be_made(tmp_path):
    (tmp_path / "locks").write_text("no folder")
    done = []
    with held("k", tmp_path):
        done.append(1)
    assert done == [1]


def test_an_output_is_written_where_no_lock_is_taken(tmp_path, without_locks):
    with Draft(tmp_path / "out") as draft:
        (draft.folder / "a").write_text("x")
        draft.commit()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_output_that_waits_for_nobody_says_so(tmp_path):
    with FileLock(tmp_path / ".out.tailwise-lock"), pytest.raises(UsageError, match="another run"):
        Draft(tmp_path / "out").__enter__()
    assert [path.name for path in tmp_path.iterdir()] == [".out.tailwise-lock"]


def test_a_spool_that_a_process_of_0_1_has_is_left_alone_and_taken_when_it_has_ended(tmp_path):
    path = tmp_path / "0123.spool.jsonl"
    path.write_text("{}\n")
    with path.open("ab") as old:
        fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert Spool.left_behind(tmp_path) == []
    (taken,) = Spool.left_behind(tmp_path)
    with path.open("ab") as old, pytest.raises(BlockingIOError):
        fcntl.flock(old, fcntl.LOCK_EX | fcntl.LOCK_NB)
    taken.close()


def test_a_spool_may_be_read_where_locked_files_may_not(tmp_path, monkeypatch):
    monkeypatch.setattr(spools, "_LOCK_BESIDE", True)
    (tmp_path / "0123.spool.jsonl").write_text("{}\n")
    (taken,) = Spool.left_behind(tmp_path)
    assert Spool.left_behind(tmp_path) == []
    with (tmp_path / "0123.spool.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # it is not this file that is locked
    taken.remove()
    assert not list(tmp_path.iterdir())
    fresh = Spool.fresh(tmp_path)
    assert Spool.left_behind(tmp_path) == []
    fresh.close()
    assert not list(tmp_path.iterdir())
