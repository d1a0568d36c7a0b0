"""The writer of a training loop: it never raises, loses nothing, and writes nothing twice."""

from __future__ import annotations

import logging

import pytest
from made_points import UP, alarm, point

from tailwise.core.errors import UnreachableError, UnreadableError
from tailwise.history import queued
from tailwise.history.jsonl import JsonlHistory, to_line
from tailwise.history.queued import QueuedHistory
from tailwise.history.spool import REJECTED, Spool
from tailwise.history.store import History
from tailwise.history.writer import open_writer


class Clock:
    """Time that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Away:
    """Stands where `History` is used, and fails while the database is away."""

    def __init__(self, monkeypatch) -> None:
        self.away, self.after_commit = False, False
        self.batches = 1 << 30  # that are taken over before it goes away
        real = History

        class Failing(real):
            def __init__(inner, *args, **kwargs) -> None:
                self._check()
                super().__init__(*args, **kwargs)

            def add_point(inner, item):
                self._check()
                return super().add_point(item)

            def add_alarm(inner, item):
                self._check()
                return super().add_alarm(item)

            def take_over(inner, spool, lines, items):
                self._check()
                self.batches -= 1
                self.away = self.batches < 0
                self._check()
                super().take_over(spool, lines, items)
                if self.after_commit:
                    raise KeyboardInterrupt  # as good as a kill between the commit and what follows it

        monkeypatch.setattr(queued, "History", Failing)

    def _check(self) -> None:
        if self.away:
            raise UnreachableError("the server is away", where="here")


@pytest.fixture
def database(monkeypatch) -> Away:
    return Away(monkeypatch)


def steps(where, run="a") -> list[int]:
    with History(where, create=False) as history:
        return [item.step for item in history.points(run)]


def test_writing_goes_straight_to_the_store(where, tmp_path):
    with QueuedHistory(where, tmp_path / "spool") as writer:
        writer.write(point(1))
        writer.write(alarm(1))
        assert writer.waiting == 0
    assert steps(where) == [1]
    assert not list((tmp_path / "spool").iterdir())


def test_what_waited_is_written_in_order_and_once(where, tmp_path, database, caplog):
    clock = Clock()
    writer = QueuedHistory(where, tmp_path / "spool", retry=10.0, clock=clock)
    writer.write(point(1))
    database.away = True
    for step in (2, 3):
        writer.write(point(step))
    writer.write(alarm(3))
    assert writer.waiting == 3
    database.away = False
    writer.write(point(4))  # too early to try again
    assert writer.waiting == 4
    clock.now = 11.0
    writer.write(point(5, **{UP: {"alpha": float("inf")}}))
    assert writer.waiting == 0
    writer.close()
    assert steps(where) == [1, 2, 3, 4, 5]
    with History(where) as history:
        assert history.latest("a").layers[UP]["alpha"] == float("inf")
        assert history.kept_alarms("a")[0].times == 1
    assert [line.split()[:2] for line in caplog.messages] == [["points", "wait"], ["the", "history"]]


def test_a_database_that_is_away_from_the_start_is_waited_for(where, tmp_path, database):
    database.away = True
    clock = Clock()
    writer = QueuedHistory(where, tmp_path / "spool", clock=clock)
    writer.write(point(1))
    assert writer.waiting == 1
    assert not writer.flush()
    database.away = False
    assert writer.flush()
    assert writer.flush()
    writer.close()
    assert steps(where) == [1]


def test_a_process_that_ends_leaves_its_lines_to_the_next(where, tmp_path, database):
    database.away = True
    with QueuedHistory(where, tmp_path / "spool") as writer:
        writer.write(point(1))
        writer.write(point(2))
    database.away = False
    with QueuedHistory(where, tmp_path / "spool") as writer:
        writer.write(point(3))
    assert steps(where) == [1, 2, 3]
    assert not list((tmp_path / "spool").iterdir())


def test_a_kill_after_the_commit_writes_nothing_twice(where, tmp_path, database):
    database.away = True
    with QueuedHistory(where, tmp_path / "spool") as writer:
        writer.write(alarm(1))
        writer.write(alarm(2))
    database.away, database.after_commit = False, True
    with pytest.raises(KeyboardInterrupt):
        QueuedHistory(where, tmp_path / "spool")
    database.after_commit = False
    with History(where) as history:  # which another process changed in the meantime
        history.add_alarm(alarm(3))
    QueuedHistory(where, tmp_path / "spool").close()
    with History(where) as history:
        assert history.kept_alarms("a")[0].times == 3


def test_a_spool_in_use_is_left_alone(tmp_path):
    spool = Spool.fresh(tmp_path)
    spool.append(point(1))
    assert Spool.left_behind(tmp_path) == []
    spool.close()
    (found,) = Spool.left_behind(tmp_path)
    assert found.lines == 1
    found.close()


def test_a_line_that_the_store_does_not_take_is_put_aside(where, tmp_path, caplog):
    folder = tmp_path / "spool"
    folder.mkdir()
    lines = [
        to_line(point(1)),
        "nonsense",
        to_line(point(2)).replace("cheap", "other"),
        to_line(point(3)),
    ]
    (folder / "0123.spool.jsonl").write_text("\n".join(lines) + '\n{"torn": ')
    with QueuedHistory(where, folder) as writer:
        assert writer.waiting == 0
    taken = steps(where)
    assert {1, 3} <= set(taken)
    assert "nonsense" in (folder / REJECTED).read_text()
    assert "torn" not in (folder / REJECTED).read_text()
    assert "is put aside" in caplog.text


def test_many_lines_are_taken_over_in_batches(where, tmp_path, database):
    database.away = True
    with QueuedHistory(where, tmp_path / "spool") as writer:
        for step in range(250):
            writer.write(point(step, **{UP: {"alpha": 1.0}}))
    database.away = False
    QueuedHistory(where, tmp_path / "spool").close()
    assert steps(where) == list(range(250))


def test_a_database_that_goes_away_amid_what_waited(where, tmp_path, database):
    database.away = True
    with QueuedHistory(where, tmp_path / "spool") as writer:
        for step in range(250):
            writer.write(alarm(step))
    database.away, database.batches = False, 1
    writer = QueuedHistory(where, tmp_path / "spool")
    assert database.away
    writer.write(alarm(250))
    database.away, database.batches = False, 9
    assert writer.flush()
    writer.close()
    with History(where) as history:
        assert history.kept_alarms("a")[0].times == 251
    assert not list((tmp_path / "spool").iterdir())


def test_a_spool_that_cannot_be_made_is_one_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match=r"points could not wait here[\s\S]*another spool folder"):
        QueuedHistory(tmp_path / "x.db", tmp_path / "file" / "spool")


def test_a_full_disk_never_reaches_the_training_loop(tmp_path, database, monkeypatch, caplog):
    writer = QueuedHistory(tmp_path / "x.db", tmp_path / "spool")
    database.away = True

    def full(self, item):
        raise UnreachableError("could not be written: No space left on device", where=self.path)

    monkeypatch.setattr(JsonlHistory, "append", full)
    for step in range(5):
        writer.write(point(step))
    assert writer.lost == 5
    assert len([line for line in caplog.messages if "No space left" in line]) == 1
    assert len(caplog.messages) == 2
    writer.close()


def test_what_is_no_point_never_reaches_the_training_loop(tmp_path, caplog):
    with QueuedHistory(tmp_path / "x.db") as writer:
        writer.write("nonsense")
        writer.write(point(1, **{UP: {"alpha": "high"}}))
        writer.write(point(2))
        assert writer.lost == 2
    assert steps(tmp_path / "x.db") == [2]
    assert len(caplog.messages) == 1


def test_a_store_that_is_newer_or_damaged_is_said_at_once(tmp_path):
    (tmp_path / "x.db").write_text("no database at all" * 100)
    with pytest.raises(UnreadableError, match="is no store"):
        QueuedHistory(tmp_path / "x.db")


def test_a_server_that_goes_and_comes_back(postgres, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    url = postgres.new_store()
    writer = QueuedHistory(url, tmp_path / "spool", retry=0.0)
    writer.write(point(1))
    postgres.stop()
    writer.write(point(2))
    writer.write(point(3))
    assert writer.waiting == 2
    postgres.start()
    writer.write(point(4))
    assert writer.waiting == 0
    writer.close()
    assert steps(url) == [1, 2, 3, 4]


def test_the_writer_for_an_address(tmp_path, monkeypatch):
    monkeypatch.setenv("TAILWISE_CACHE", str(tmp_path / "cache"))
    lines, store = open_writer(tmp_path / "x.jsonl"), open_writer(tmp_path / "x.db")
    assert isinstance(lines, JsonlHistory)
    assert isinstance(store, QueuedHistory)
    assert (tmp_path / "x.db.spool").is_dir()
    away = open_writer(f"postgresql://me@/x?host={tmp_path}")
    assert list((tmp_path / "cache" / "spool").iterdir())
    for writer in (lines, store, away):
        writer.close()


@pytest.mark.parametrize("name", ["x.db", "x.jsonl"])
def test_a_tilde_is_the_home_for_what_waits_too(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with open_writer(f"~/{name}") as writer:
        writer.write(point(1))
    assert (tmp_path / "home" / name).is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["home"]
