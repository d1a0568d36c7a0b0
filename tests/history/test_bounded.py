"""A file of kilobytes may stand for rows without number: what reads it takes no more than its size explains.

What was mended took minutes, or did not end: these tests fail by not coming to theirs.
"""

import io
import sqlite3
import struct
from contextlib import suppress

import pytest
from rich.console import Console

from tailwise.app.workspace.scan import is_history
from tailwise.core.errors import TailwiseError, UnreadableError
from tailwise.history import bounded
from tailwise.history.jsonl import one_line, read_jsonl
from tailwise.history.point import Point, Resumed
from tailwise.history.prune import Retention
from tailwise.history.store import History
from tailwise.report.history import runs_view


def full(step, layers=None, scalars=None):
    return Point("r", step, "full", 0.0, layers or {}, scalars or {})


@pytest.fixture
def store(tmp_path):
    path = tmp_path / "runs.db"
    with History(path) as history:
        history.add_all([full(step, {"up": {"alpha": 3.0}}, {"loss": 1.0}) for step in range(3)])
    with sqlite3.connect(path, isolation_level=None) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    return path


def folded(path, page, levels=4, head=0):
    """Make the b-tree at a page one whose inner pages name one child again and again."""
    data = bytearray(path.read_bytes())
    size = struct.unpack(">H", data[16:18])[0]

    def inner(child, head=0):
        count = (size - head - 12) // 7
        cells = size - 5 * count
        body = bytearray(size)
        body[head : head + 12] = struct.pack(">BHHHBI", 5, 0, count, cells, 0, child)
        for place in range(count):
            at = cells + 5 * place
            body[at : at + 5] = struct.pack(">IB", child, 1)
            body[head + 12 + 2 * place : head + 14 + 2 * place] = struct.pack(">H", at)
        return body

    def added(body):
        data.extend(body)
        return len(data) // size

    old = data[(page - 1) * size : page * size]
    if head:  # offsets of cells count from the beginning of the page, so that they stay; its header moves to the front
        old = (
            old[head : head + 8 + 2 * struct.unpack(">H", old[head + 3 : head + 5])[0]].ljust(head, b"\0") + old[head:]
        )
        old = old[:size]
    child = added(old)
    for _ in range(levels - 1):
        child = added(inner(child))
    data[(page - 1) * size : page * size] = data[:head] + inner(child, head)[head:]
    data[28:32] = struct.pack(">I", len(data) // size)
    path.write_bytes(data)


def root_of(path, table):
    with sqlite3.connect(path) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchone()
    connection.close()
    return page


def read(path):
    with History(path, create=False) as history:
        for run in history.runs():
            history.series(run.name, ["alpha"])
            history.scalars(run.name)


@pytest.mark.parametrize("table", ["tailwise_runs", "tailwise_points", "tailwise_meta"])
def test_a_tree_whose_pages_repeat_is_refused(store, table):
    folded(store, root_of(store, table))
    assert store.stat().st_size < 300_000
    with pytest.raises(UnreadableError):
        read(store)


@pytest.mark.parametrize("table", ["tailwise_runs", "tailwise_points", "tailwise_meta"])
def test_in_a_file_too_large_to_look_through_reading_ends_all_the_same(store, monkeypatch, table):
    monkeypatch.setattr(bounded, "_LOOKED_THROUGH", 0)
    monkeypatch.setattr(bounded, "_STEPS", 500_000)
    monkeypatch.setattr(bounded, "_STEPS_A_BYTE", 1)
    folded(store, root_of(store, table))
    with suppress(TailwiseError):  # what is found by an index is read as if nothing were
        read(store)


def test_a_schema_without_end_is_no_history_and_ends(store):
    folded(store, 1, head=100)
    assert not is_history(store)
    with pytest.raises(TailwiseError):
        History(store, create=False)


def test_a_whole_store_is_looked_through_and_read(store):
    with History(store, create=False) as history:
        assert history.series("r", ["alpha"]).num_rows == 3
        assert history.scalars("r").num_rows == 3


def test_work_goes_by_the_size_of_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(bounded, "_STEPS", 100_000)
    small, large = tmp_path / "small", tmp_path / "large"
    small.write_bytes(b"")
    large.write_bytes(b"\0" * 1_000_000)
    count = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000) SELECT max(i) FROM n"
    for path, enough in ((small, False), (large, True)):
        connection = sqlite3.connect(":memory:")
        work = bounded.BoundedWork(connection, path)
        for _ in range(3):  # each statement has its own
            work.begin()
            if enough:
                assert connection.execute(count).fetchone() == (100_000,)
            else:
                with pytest.raises(sqlite3.OperationalError, match="interrupted"):
                    connection.execute(count).fetchone()
        connection.close()


def test_going_back_again_and_again_takes_time_in_line(tmp_path):
    items = [full(step) for step in range(20_000)] + [Resumed("other", 0, 0.0), Resumed("r", 50_000, 0.0)] * 20_000
    assert len(one_line(items)) == 20_000


def test_many_points_of_one_step_are_united_in_line():
    (point,) = one_line([full(1, {f"l{n}": {"a": n}}, {f"s{n % 7}": n}) for n in range(30_000)])
    assert len(point.layers) == 30_000
    assert point.scalars == {f"s{n}": max(range(n, 30_000, 7)) for n in range(7)}


def test_a_branch_that_ended_leaves_what_came_before_and_after(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(
        f'{{"kind":"{kind}","run":"r","step":{step},"cadence":"full","time":{time},"layers":{{}},"scalars":{{"loss":{time}}}}}\n'
        if kind == "point" else f'{{"kind":"resumed","run":"r","step":{step},"time":{time}}}\n'
        for kind, step, time in [("point", 1, 0), ("point", 2, 1), ("point", 3, 2), ("resumed", 1, 3), ("point", 2, 4),
                                 ("point", 2, 5), ("resumed", 2, 6), ("point", 4, 7)]
    ))  # fmt: skip
    assert [(point.step, point.scalars["loss"]) for point in one_line(read_jsonl(path))] == [(1, 0), (2, 5), (4, 7)]


def test_scalars_with_a_name_for_every_point_are_one_error(tmp_path):
    with History(tmp_path / "x.db") as history:
        history.add_all([full(step, scalars={f"{step}.{n}": 1.0 for n in range(3)}) for step in range(3000)])
        with pytest.raises(UnreadableError, match="3000 points have 9000 scalars"):
            history.scalars("r")
        assert history.scalars("r", steps=(0, 100)).num_rows > 0


def test_points_without_values_make_no_room_for_layers(tmp_path):
    path, layers = tmp_path / "x.db", 20_000
    with History(path) as history:
        history.add_point(full(0, {f"l{n}": {"alpha": 3.0} for n in range(layers)}))
    with sqlite3.connect(path) as connection:
        (layout,) = connection.execute("SELECT layout_id FROM tailwise_points").fetchone()
        connection.executemany(
            "INSERT INTO tailwise_points (run_id, step, tempo, time, layout_id, scalars, notes)"
            " VALUES (1, ?, 'full', 0, ?, '{}', '[]')",
            [(step, layout) for step in range(1, 200_000)],
        )
    connection.close()
    with History(path) as history:
        found = history.series("r", ["alpha"])  # 32 GB where every point had its room
    assert found.num_rows == layers


def test_a_table_of_others_sets_nothing_off_when_points_go(store):
    with sqlite3.connect(store) as connection:
        connection.execute("CREATE TABLE other (p INTEGER REFERENCES tailwise_points (id) ON DELETE CASCADE)")
        connection.execute("INSERT INTO other SELECT id FROM tailwise_points")
        connection.execute("CREATE TABLE sink (a)")
        connection.execute(
            "CREATE TRIGGER t AFTER DELETE ON other BEGIN INSERT INTO sink WITH RECURSIVE n(i) AS"
            " (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT i FROM n WHERE i < 0; END"
        )
    connection.close()
    with pytest.raises(UnreadableError, match="more work"), History(store) as history:
        history.prune(Retention(keep_last=1))


def test_a_time_in_no_calendar_is_a_dash_among_the_others(tmp_path):
    with History(tmp_path / "x.db") as history:
        history.add_point(Point("far", 1, "full", 1e300, {}, {"loss": 1.0}))
        history.add_point(Point("near", 1, "full", 1.8e9, {}, {"loss": 1.0}))
        out = io.StringIO()
        Console(file=out, width=200).print(runs_view(history.runs()))
    assert sorted(line.split()[-1] for line in out.getvalue().splitlines() if "1 … 1" in line) == ["08:00", "–"]
