"""A store that was edited or made to harm: every page of it is answered, and no value in it is a fault of ours."""

import shutil
import sqlite3

import numpy as np
import pytest

import tailwise as tw
from tailwise.core.errors import TailwiseError, UnreadableError
from tailwise.history.point import Alarm, Point
from tailwise.history.store import History

RUN = "r"
ODD = (
    2**62, float("inf"), "x", "a\0b", b"\xff\xfe", "{}", '[["a","b",1e999]]', '{"x":"\\ud800"}', "[" * 100_000,
    "<script>alert(1)</script>",
)  # fmt: skip
COLUMNS = [
    ("tailwise_runs", "name"), ("tailwise_metrics", "name"), ("tailwise_layouts", "layers"),
    ("tailwise_points", "step"),
    ("tailwise_points", "tempo"), ("tailwise_points", "time"), ("tailwise_points", "layout_id"),
    ("tailwise_points", "scalars"), ("tailwise_points", "notes"), ("tailwise_vectors", "metric_id"),
    ("tailwise_vectors", "data"), ("tailwise_audits", "path"), ("tailwise_audits", "provenance"),
    ("tailwise_audits", "facts"), ("tailwise_alarms", "severity"), ("tailwise_alarms", "body"),
    ("tailwise_alarms", "times"), ("tailwise_alarms", "last_step"), ("tailwise_meta", "value"),
]  # fmt: skip


@pytest.fixture(scope="module")
def honest(tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "honest.db"
    made = tw.audit({"l.0.mlp.up.weight": np.random.default_rng(0).standard_normal((40, 30))}, use_cache=False)
    with History(path) as history:
        history.add_all(
            [Point(RUN, step, "full", 1.8e9, {"l.0.mlp.up": {"alpha": 2.0 + step}}, {"loss": 1.0}) for step in range(4)]
        )
        history.add_audit(made, RUN, 9)
        history.add_alarm(Alarm(RUN, 3, 1.8e9, "TW701", "warning", "rises", ("l.0.mlp.up",), {"x": 1.0}))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    return path


def edited(path, *statements):
    with sqlite3.connect(path) as connection:
        for statement, *values in statements:
            connection.execute(statement, values)
    connection.close()
    return path


def use(path):
    """Everything that is asked of a store."""
    with History(path, create=False) as history:
        for run in history.runs():
            list(history.points(run.name))
            history.latest(run.name)
            for metric in history.metrics(run.name):
                history.series(run.name, metric)
            history.scalars(run.name)
            for kept in history.audits(run.name):
                history.audit_rows(run.name, kept.step)
        history.kept_alarms()


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_a_value_of_another_kind_is_told_or_shown(honest, folder, client, table, column):
    store = folder / "history.db"
    for value in ODD:
        for end in ("", "-wal", "-shm"):
            (folder / f"history.db{end}").unlink(missing_ok=True)
        shutil.copy(honest, store)
        workspace = client.app.state.context.workspace
        workspace._history = workspace._refused = None
        edited(store, (f"UPDATE OR IGNORE {table} SET {column} = ?", value))
        try:
            use(store)
        except TailwiseError as error:
            str(error).encode()
            continue
        where = {"params": {"name": RUN, "metric": "alpha"}}
        for page in ("/training/run", "/api/training/run", "/api/training/series", "/api/training/scalars"):
            found = client.get(page, **where)
            assert found.status_code < 500, (value, page, found.text[:500])
            assert "<script>alert" not in found.text or "json" in found.headers["content-type"]


HARM = {
    "a view without end": [
        ("ALTER TABLE tailwise_points RENAME TO hidden",),
        ("CREATE VIEW tailwise_points AS WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) "
         "SELECT hidden.* FROM hidden, n",),
    ],
    "a view in large letters": [
        ("ALTER TABLE tailwise_runs RENAME TO hidden",),
        ("CREATE VIEW TAILWISE_runs AS SELECT * FROM hidden",),
    ],
    "a view of a kind in large letters": [
        ("ALTER TABLE tailwise_runs RENAME TO hidden",),
        ("CREATE VIEW tailwise_runs AS SELECT * FROM hidden",),
        ("PRAGMA writable_schema=ON",),
        ("UPDATE sqlite_master SET type = 'VIEW' WHERE name = 'tailwise_runs'",),
    ],
    "a trigger on large letters": [("CREATE TRIGGER t AFTER INSERT ON TAILWISE_POINTS BEGIN SELECT 1; END",)],
    "a virtual table behind a comment": [
        ("DROP TABLE tailwise_spools",),
        ("CREATE VIRTUAL TABLE tailwise_spools USING fts5(id, lines)",),
        ("PRAGMA writable_schema=ON",),
        ("UPDATE sqlite_master SET sql = replace(sql, 'CREATE VIRTUAL', 'CREATE/**/VIRTUAL') "
         "WHERE name = 'tailwise_spools'",),
    ],
    "a trigger": [("CREATE TRIGGER t AFTER INSERT ON tailwise_points BEGIN DELETE FROM tailwise_runs; END",)],
    "a column that is computed": [
        ("ALTER TABLE tailwise_points ADD COLUMN x AS (zeroblob(200000000))",),
    ],
    "a virtual table": [
        ("DROP TABLE tailwise_spools",),
        ("CREATE VIRTUAL TABLE tailwise_spools USING fts5(id, lines)",),
    ],
}  # fmt: skip


@pytest.mark.parametrize("statements", HARM.values(), ids=HARM)
def test_what_computes_is_no_store(honest, tmp_path, statements):
    store = edited(shutil.copy(honest, tmp_path / "h.db"), *statements)
    with pytest.raises(UnreadableError, match="tailwise has not made it"):
        History(store, create=False)


def test_a_view_of_the_owner_s_is_no_harm(honest, tmp_path):
    statement = "CREATE VIEW mine AS SELECT name FROM tailwise_runs"
    use(edited(shutil.copy(honest, tmp_path / "h.db"), (statement,)))


def test_a_text_without_end_is_told(honest, tmp_path):
    statement = "UPDATE tailwise_points SET notes = zeroblob(300000000)"
    store = edited(shutil.copy(honest, tmp_path / "h.db"), (statement,))
    with pytest.raises(UnreadableError, match="too big"):
        use(store)
