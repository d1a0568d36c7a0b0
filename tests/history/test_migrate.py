"""Older stores are brought up to date; newer ones, and what is no store, are refused in one sentence."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from made_points import UP, alarm, point

from tailwise.core.errors import TailwiseError, UnreachableError, UnreadableError, UsageError
from tailwise.history.connect import connect, writing
from tailwise.history.schema import META, METADATA, SCHEMA
from tailwise.history.sql import inspect, text, update
from tailwise.history.store import History

VERSION_1 = Path(__file__).with_name("version_1.sql")


@pytest.fixture
def version_1(tmp_path) -> Path:
    path = tmp_path / "old.db"
    with sqlite3.connect(path) as connection:
        connection.executescript(VERSION_1.read_text())
    connection.close()
    return path


def test_a_store_of_version_1_keeps_what_it_had_and_takes_more(version_1):
    with History(version_1) as history:
        assert [item.step for item in history.points("a")] == [1, 2]
        assert history.latest("a") == point(2)
        (kept,) = history.kept_alarms("a")
        assert (kept.alarm, kept.times, kept.last_step) == (alarm(2), 1, 2)
        assert not history.add_alarm(alarm(9))
        assert history.kept_alarms("a")[0].times == 2
        assert history.taken_over("nothing") == 0
    with History(version_1) as history:
        assert history.series("a", ["alpha"], [UP])["alpha"].to_pylist() == [3.0, 4.0]


def test_a_migrated_store_has_the_columns_of_a_new_one(version_1, tmp_path):
    columns = []
    for path in (version_1, tmp_path / "new.db"):
        History(path).close()
        engine = connect(path, create=False, patience=1.0)
        seen = inspect(engine)
        columns.append({name: {c["name"] for c in seen.get_columns(name)} for name in seen.get_table_names()})
        engine.dispose()
    assert columns[0] == columns[1]
    assert set(columns[0]) == set(METADATA.tables)


def test_a_migration_of_postgresql(postgres):
    url = postgres.new_store()
    with History(url) as history:
        history.add_alarm(alarm(2))
    engine = connect(url, create=False, patience=5.0)
    with writing(engine, "here") as connection:
        for column in ("times", "last_step"):
            connection.execute(text(f"ALTER TABLE tailwise_alarms DROP COLUMN {column}"))
        connection.execute(text("DROP TABLE tailwise_spools"))
        connection.execute(update(META).values(value="1"))
    engine.dispose()
    with History(url) as history:
        assert history.kept_alarms("a")[0].last_step == 2
        assert history.add_point(point(1)) == "new"


@pytest.mark.parametrize(
    "made",
    ["ALTER TABLE tailwise_points RENAME TO p; CREATE VIEW tailwise_points AS SELECT * FROM p",
     "CREATE RULE r AS ON UPDATE TO tailwise_runs DO ALSO SELECT 1",
     "CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'; "
     "CREATE TRIGGER t BEFORE INSERT ON tailwise_points FOR EACH ROW EXECUTE FUNCTION f()",
     "ALTER TABLE tailwise_points ENABLE ROW LEVEL SECURITY",
     "ALTER TABLE tailwise_runs ADD COLUMN more text GENERATED ALWAYS AS ('x') STORED",
     "CREATE TABLE heir () INHERITS (tailwise_runs)"],
)  # fmt: skip
def test_a_store_in_postgresql_that_computes_is_refused(postgres, made):
    url = postgres.new_store()
    with History(url) as history:
        history.add_point(point(1))
    History(url).close()  # as it was made, it opens
    engine = connect(url, create=False, patience=5.0)
    with engine.begin() as connection:
        for statement in made.split("; ") if "BEGIN" not in made else made.split("; CREATE"):
            connection.execute(text(statement if statement.startswith(("CREATE", "ALTER")) else f"CREATE{statement}"))
    engine.dispose()
    with pytest.raises(UnreadableError, match="tailwise has not made it"):
        History(url)


def test_a_column_of_another_type_in_postgresql_is_one_message(postgres):
    url = postgres.new_store()
    with History(url) as history:
        history.add_point(point(1))
    engine = connect(url, create=False, patience=5.0)
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE tailwise_points ALTER time TYPE timestamptz USING to_timestamp(time)"))
    engine.dispose()
    with History(url) as history, pytest.raises(TailwiseError):
        list(history.points("a"))


def test_vectors_of_postgresql_are_neither_moved_nor_compressed(postgres):
    url = postgres.new_store()
    History(url).close()
    engine = connect(url, create=False, patience=5.0)
    ask = "SELECT attstorage::text FROM pg_attribute WHERE attrelid = 'tailwise_vectors'::regclass AND attname = 'data'"
    with engine.connect() as connection:
        assert connection.execute(text(ask)).scalar() == "e"
    engine.dispose()


def test_a_newer_store_is_one_clear_error(where):
    History(where).close()
    engine = connect(where, create=False, patience=5.0)
    with writing(engine, "here") as connection:
        connection.execute(update(META).values(value=str(SCHEMA + 1)))
    engine.dispose()
    with pytest.raises(UnreadableError, match=rf"newer tailwise: it has schema {SCHEMA + 1}[\s\S]*--upgrade"):
        History(where)


def test_a_store_that_does_not_say_its_version(where):
    History(where).close()
    engine = connect(where, create=False, patience=5.0)
    with writing(engine, "here") as connection:
        connection.execute(META.delete())
    engine.dispose()
    with pytest.raises(UnreadableError, match="does not say which version"):
        History(where)


def test_what_is_no_store(tmp_path):
    with pytest.raises(UnreadableError, match="no such store"):
        History(tmp_path / "absent.db", create=False)
    assert not (tmp_path / "absent.db").exists()
    with pytest.raises(UsageError, match="is a folder"):
        History(tmp_path)
    with pytest.raises(UsageError, match="tailwise store import"):
        History(tmp_path / "run.jsonl")
    (tmp_path / "text.db").write_text("not a database, but long enough to be looked at as one" * 20)
    with pytest.raises(UnreadableError, match="is no store, or it is damaged"):
        History(tmp_path / "text.db")
    with sqlite3.connect(tmp_path / "other.db") as connection:
        connection.execute("CREATE TABLE notes (id INTEGER)")
    connection.close()
    before = (tmp_path / "other.db").read_bytes()
    with pytest.raises(UsageError, match="database of another program"):
        History(tmp_path / "other.db")
    assert (tmp_path / "other.db").read_bytes() == before


@pytest.mark.parametrize("wrong", ["mysql://localhost/x", "postgresql://host:port:port/x", "nonsense://"])
def test_addresses_that_can_be_none(wrong):
    with pytest.raises(UsageError, match="postgresql://user@host/database"):
        History(wrong)


def test_a_server_that_is_not_there_is_said_without_the_password(tmp_path):
    with pytest.raises(UnreachableError, match="could not be reached") as caught:
        History(f"postgresql://me:secret@/x?host={tmp_path}", patience=1.0)
    assert "secret" not in str(caught.value)
    assert "***" in str(caught.value)


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UnreachableError, match="could not be made"):
        History(tmp_path / "file" / "history.db")


@pytest.mark.parametrize("open_elsewhere", [False, True])
def test_who_may_only_read_reads(tmp_path, monkeypatch, open_elsewhere):
    path = tmp_path / "a store#1.db"
    writer = History(path)
    writer.add_point(point(1))
    if not open_elsewhere:
        writer.close()
    monkeypatch.setattr("tailwise.history.connect._may_write", lambda _: False)
    with History(path, create=False) as history:
        assert history.latest("a") == point(1)
        with pytest.raises(UnreachableError, match="may not be written"):
            history.add_point(point(2))
    writer.close()
