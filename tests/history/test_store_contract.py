"""What a store promises, on SQLite and on PostgreSQL alike."""

from __future__ import annotations

import math
import threading
from dataclasses import replace

import pyarrow.parquet as pq
import pytest
from made_points import DOWN, UP, Q, alarm, audit, point

from tailwise.core.errors import UsageError
from tailwise.history import read
from tailwise.history.connect import reading
from tailwise.history.point import Point, Resumed
from tailwise.history.prune import Retention
from tailwise.history.queued import QueuedHistory
from tailwise.history.store import History


def test_a_point_comes_back_as_it_was(store):
    given = point(3, notes=("one layer skipped",), scalars={"loss": 0.5, "lr": math.inf, "gap": -math.inf})
    assert store.add_point(given) == "new"
    assert list(store.points("a")) == [given]


def test_not_a_number_is_kept_apart_from_no_number(store):
    store.add_point(point(1, scalars={"loss": math.nan}, **{UP: {"alpha": math.nan}, DOWN: {"norm": 1.0}}))
    (back,) = store.points("a")
    assert math.isnan(back.layers[UP]["alpha"])
    assert back.layers[DOWN] == {"norm": 1.0}
    assert math.isnan(back.scalars["loss"])
    lines = store.series("a", ["alpha", "norm"]).to_pylist()
    assert lines[0]["norm"] is None
    assert lines[1]["alpha"] is None
    assert math.isnan(lines[0]["alpha"])


def test_a_point_without_layers_and_a_layer_without_values(store):
    store.add_point(point(1, **{UP: {}}))
    store.add_all([])
    (back,) = store.points("a")
    assert back.layers == {UP: {}}
    assert store.series("a", []).num_rows == 0


def test_points_are_in_order_of_step_whatever_order_they_came_in(store):
    store.add_all([point(step) for step in (5, 1, 3)])
    store.add_point(point(3, cadence="full"))
    assert [(item.step, item.cadence) for item in store.points("a")] == [
        (1, "cheap"),
        (3, "cheap"),
        (3, "full"),
        (5, "cheap"),
    ]
    assert [item.step for item in store.points("a", cadence="full")] == [3]
    assert [item.step for item in store.points("a", steps=(2, 4))] == [3, 3]
    assert [item.step for item in store.points("a", steps=(None, 1))] == [1]
    assert [item.step for item in store.points("a", newest=2)] == [3, 5]


def test_more_points_than_are_read_at_once(store):
    store.add_all([point(step) for step in range(150)])
    assert [item.step for item in store.points("a")] == list(range(150))


def test_latest_is_the_highest_step_and_there_the_full_point(store):
    store.add_all([point(7), point(7, cadence="full"), point(2)])
    assert store.latest("a").cadence == "full"
    assert store.latest("a", cadence="cheap").step == 7
    store.add_audit(audit(), "b", 1)
    assert store.latest("b") is None


def test_a_point_written_twice_is_kept_once(store):
    assert [store.add_point(point(1)) for _ in range(2)] == ["new", "same"]
    assert store.runs()[0].points == 1


def test_ranks_that_measure_different_layers_give_one_point(store):
    store.add_point(point(1, scalars={"loss": 1.0}, notes=("of rank 0",), **{UP: {"alpha": 2.0}}))
    became = store.add_point(point(1, scalars={"lr": 0.1}, notes=("of rank 1",), **{DOWN: {"alpha": 3.0}}))
    assert became == "merged"
    (back,) = store.points("a")
    assert back.layers == {UP: {"alpha": 2.0}, DOWN: {"alpha": 3.0}}
    assert back.scalars == {"loss": 1.0, "lr": 0.1}
    assert back.notes == ("of rank 0", "of rank 1")


def test_other_numbers_for_the_same_step_replace_and_are_mentioned_once(store, caplog):
    store.add_all([point(1, **{UP: {"alpha": 2.0}}), point(2, **{UP: {"alpha": 2.0}})])
    assert [store.add_point(point(step, **{UP: {"alpha": 9.0}})) for step in (1, 2)] == ["changed", "changed"]
    assert next(store.points("a")).layers[UP]["alpha"] == 9.0
    assert len([line for line in caplog.messages if "another process writes the same layers" in line]) == 1


def test_series_is_a_column_a_metric(store):
    store.add_all([point(1), point(2)])
    table = store.series("a", ["alpha", "norm"])
    assert table.column_names == ["step", "cadence", "layer", "role", "block", "alpha", "norm"]
    assert table.to_pylist()[:2] == [
        {"step": 1, "cadence": "cheap", "layer": UP, "role": "mlp_up", "block": 0, "alpha": 3.0, "norm": 1.0},
        {"step": 1, "cadence": "cheap", "layer": DOWN, "role": "mlp_down", "block": 1, "alpha": 4.0, "norm": None},
    ]


def test_series_of_some_layers_roles_and_steps(store):
    store.add_all([point(step) for step in range(5)])
    assert store.series("a", ["alpha"], layers=r"down")["layer"].unique().to_pylist() == [DOWN]
    assert store.series("a", ["alpha"], layers=[UP])["layer"].unique().to_pylist() == [UP]
    assert store.series("a", ["alpha"], roles={"mlp_up"}, steps=(3, None))["alpha"].to_pylist() == [5.0, 6.0]
    assert store.series("a", ["alpha"], layers="nothing").num_rows == 0
    assert store.series("a", ["alpha"], steps=(90, 99)).num_rows == 0
    with pytest.raises(UsageError, match="not a regular expression"):
        store.series("a", ["alpha"], layers="(")


def test_series_over_points_of_different_layers_and_audits(store):
    store.add_all([point(2, **{DOWN: {"alpha": 1.0}}), point(1), point(3)])
    store.add_audit(audit(4.5), "a", 2)
    lines = store.series("a", ["alpha"], steps=(2, 3)).to_pylist()
    assert [(line["step"], line["cadence"], line["layer"], line["alpha"]) for line in lines] == [
        (2, "cheap", DOWN, 1.0), (2, "audit", UP, 4.5), (3, "cheap", UP, 5.0), (3, "cheap", DOWN, 6.0),
    ]  # fmt: skip


def test_scalars_are_a_line_a_point(store):
    store.add_all([point(1, scalars={"loss": 2.0}), point(2, scalars={"lr": 0.1})])
    assert store.scalars("a").to_pylist() == [
        {"step": 1, "cadence": "cheap", "time": 1001.0, "loss": 2.0, "lr": None},
        {"step": 2, "cadence": "cheap", "time": 1002.0, "loss": None, "lr": 0.1},
    ]


def test_an_audit_comes_back_row_by_row(store, tmp_path):
    given = audit()
    store.add_audit(given, "a", 10, path=tmp_path / "x.audit")
    back = store.audit_rows("a", 10)
    for row, other in zip(given.rows, back, strict=True):
        metrics = {name: value for name, value in row.metrics.items() if value is not None}
        assert {name: value for name, value in other.metrics.items() if value is not None} == metrics
        assert replace(row, metrics={}, seconds=0) == replace(other, metrics={}, seconds=0)
    (kept,) = store.audits("a")
    assert kept.step == 10
    assert kept.path == str(tmp_path / "x.audit")
    assert kept.provenance == given.provenance
    assert kept.summary["stable_rank"] == 4.0


def test_an_audit_of_the_same_step_replaces(store):
    store.add_audit(audit(3.0), "a", 10)
    store.add_audit(audit(5.0), "a", 10)
    assert len(store.audits("a")) == 1
    assert {row.metrics.get("alpha") for row in store.audit_rows("a", 10)} == {5.0, None}


def test_an_audit_that_is_not_there_names_those_nearby(store):
    store.add_audit(audit(), "a", 10)
    with pytest.raises(UsageError, match=r"no audit of step 11[\s\S]*nearby: 10"):
        store.audit_rows("a", 11)


def test_alarms_of_one_key_are_one_and_their_severity_only_rises(store):
    assert store.add_alarm(alarm(5))
    assert not store.add_alarm(alarm(5))
    assert not store.add_alarm(alarm(9, severity="error"))
    assert not store.add_alarm(alarm(12, severity="note"))
    assert store.add_alarm(alarm(6, rule="TW402"))
    assert store.add_alarm(alarm(7, layers=()))
    first = store.kept_alarms("a")[0]
    assert (first.alarm.step, first.alarm.severity, first.times, first.last_step) == (5, "error", 3, 12)
    assert first.alarm.evidence == {"alpha": 7.0}
    assert [item.rule for item in store.alarms()] == ["TW401", "TW402", "TW401"]
    assert store.alarms("a")[1] == alarm(6, rule="TW402")


def test_runs_are_counted(store):
    store.add_all([point(1), point(4)])
    store.add_alarm(alarm(4))
    store.add_audit(audit(), "b/c", 100)
    by_name = {run.name: run for run in store.runs()}
    assert (by_name["a"].points, by_name["a"].audits, by_name["a"].alarms) == (2, 0, 1)
    assert (by_name["a"].first_step, by_name["a"].last_step, by_name["a"].updated) == (1, 4, 1004.0)
    assert (by_name["b/c"].points, by_name["b/c"].audits) == (0, 1)
    assert store.runs()[0].name == "b/c"
    assert store.metrics("b/c") == ["alpha", "stable_rank"]


@pytest.mark.parametrize("ask", ["audits", "alarms", "scalars", "metrics", "latest"])
def test_an_unknown_run_is_named_with_its_neighbours(store, ask):
    with pytest.raises(UsageError, match="the store is empty"):
        getattr(store, ask)("lama")
    store.add_point(point(1, run="llama"))
    with pytest.raises(UsageError, match=r"no run named 'lama'[\s\S]*did you mean llama"):
        getattr(store, ask)("lama")


def test_an_unknown_metric_is_named_with_its_neighbours(store):
    store.add_point(point(1))
    with pytest.raises(UsageError, match=r"no metric in this store named 'alhpa'[\s\S]*alpha"):
        store.series("a", ["alhpa"])


def test_the_order_of_its_layers_makes_no_other_alarm(store):
    """The worst layer stands first, and which that is changes."""
    assert store.add_alarm(alarm(3, layers=(UP, DOWN)))
    assert not store.add_alarm(alarm(5, layers=(DOWN, UP)))
    (kept,) = store.kept_alarms("a")
    assert (kept.alarm.layers, kept.times, kept.last_step) == ((UP, DOWN), 2, 5)


def test_pruning_keeps_what_was_asked_and_steps_with_alarms(store):
    store.add_all([point(step) for step in range(1, 21)])
    store.add_alarm(alarm(7))
    assert store.prune(Retention(keep_every=5, keep_last=2), "a", dry=True) == 13
    assert store.runs()[0].points == 20
    assert store.prune(Retention(keep_every=5, keep_last=2), "a") == 13
    assert [item.step for item in store.points("a")] == [1, 5, 7, 10, 15, 19, 20]
    assert store.prune(Retention(older_than=1.0)) == 5  # 1970; the first, and the step of an alarm, stay
    assert [item.step for item in store.points("a")] == [1, 7]


def test_pruning_spares_what_is_young_and_removes_audits_too(store):
    store.add_audit(audit(), "a", 1)
    store.add_audit(audit(), "a", 2)
    assert store.prune(Retention(older_than=1.0)) == 0
    assert store.prune(Retention(keep_last=0)) == 1
    assert [item.step for item in store.audits("a")] == [1]


@pytest.mark.parametrize("wrong", [{}, {"keep_every": 0}, {"keep_last": -1}, {"older_than": -1.0}])
def test_a_retention_that_makes_no_sense(wrong):
    with pytest.raises(UsageError):
        Retention(**wrong)


def test_a_deleted_run_is_gone_and_others_stay(store):
    store.add_all([point(1), point(2), point(1, run="b")])
    store.add_alarm(alarm(1))
    store.add_audit(audit(), "a", 1)
    assert store.delete_run("a") == 3
    assert [run.name for run in store.runs()] == ["b"]
    assert store.alarms() == []
    assert store.add_point(point(1)) == "new"


def test_export_stays_below_its_folder_whatever_runs_are_called(store, tmp_path):
    for name in ("..", ".", "", "a/../../b"):
        store.add_point(point(1, run=name))
    written = store.export_parquet(tmp_path / "out")
    assert len({path.parent.resolve() for path in written}) == 4
    assert {path.parent.parent.resolve() for path in written} == {(tmp_path / "out").resolve()}


def test_export_writes_a_folder_a_run(store, tmp_path):
    store.add_all([point(step, run="org/name@main") for step in range(3)])
    store.add_alarm(alarm(1, run="org/name@main"))
    store.add_audit(audit(), "b", 1, path="b.audit")
    written = store.export_parquet(tmp_path / "out")
    assert len(written) == 8
    folder = tmp_path / "out" / "org%2Fname@main"
    series = pq.read_table(folder / "series.parquet")
    assert series.num_rows == 6
    assert series.select(["step", "layer", "alpha"]).to_pylist()[0] == {"step": 0, "layer": UP, "alpha": 2.0}
    assert pq.read_table(folder / "points.parquet")["loss"].to_pylist() == [1.0, 0.5, 1 / 3]
    assert pq.read_table(folder / "alarms.parquet")["rule"].to_pylist() == ["TW401"]
    assert pq.read_table(tmp_path / "out" / "b" / "audits.parquet")["model"].to_pylist() == ["some/model"]
    assert not list((tmp_path / "out").rglob(".*"))


def test_a_store_opens_again_with_all_that_it_had(where):
    with History(where) as history:
        history.add_point(point(1))
    with History(where, create=False) as history:
        assert history.add_point(point(1)) == "same"


def test_a_reader_sees_one_state_while_another_writes(where):
    with History(where) as history, History(where) as other:
        history.add_point(point(1))
        with reading(history._engine, history.where) as connection:
            before = list(read.points(connection, "a", None, None, None))
            other.add_point(point(1, more={"alpha": 1.0}))  # which takes the place of the one that is there
            other.add_point(point(2))
            assert list(read.points(connection, "a", None, None, None)) == before
        assert len(list(history.points("a"))) == 2


def test_threads_may_write_and_read_at_once(where):
    with History(where) as history:

        def work(rank: int) -> None:
            for step in range(10):
                history.add_point(point(step, **{f"layers.{rank}.q": {"alpha": float(step)}}))
                history.series("a", ["alpha"])

        threads = [threading.Thread(target=work, args=(rank,)) for rank in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert history.series("a", ["alpha"]).num_rows == 40
        assert history.runs()[0].points == 10


def test_a_layer_of_the_last_place_and_a_role_with_gaps(store):
    names = {
        f"model.layers.{block}.{part}": {"alpha": float(block)}
        for block in range(4)
        for part in ("mlp.up_proj", "self_attn.q_proj")
    }
    store.add_point(point(1, **names))
    assert store.series("a", ["alpha"], roles=["mlp_up"])["alpha"].to_pylist() == [0.0, 1.0, 2.0, 3.0]
    assert store.series("a", ["alpha"], layers=["model.layers.3.self_attn.q_proj"])["alpha"].to_pylist() == [3.0]
    assert Q in store.series("a", ["alpha"])["layer"].to_pylist()


def test_a_run_that_goes_on_from_an_earlier_step_leaves_a_branch(store):
    store.add_all([point(step) for step in range(0, 60, 10)] + [point(step, cadence="full") for step in (0, 50)])
    store.add_alarm(alarm(50))
    store.add_alarm(alarm(10, rule="TW402"))
    store.add_alarm(alarm(40, rule="TW402"))
    store.add_audit(audit(), "a", 50)
    left = store.resume(Resumed("a", 30, 0.0))
    assert left == "a, left at step 50"
    assert [one.step for one in store.points("a")] == [0, 0, 10, 20, 30]
    assert [(one.step, one.cadence) for one in store.points(left)] == [(40, "cheap"), (50, "cheap"), (50, "full")]
    assert next(store.points(left)).layers == point(40).layers
    assert [one.rule for one in store.alarms("a")] == ["TW402"]
    assert store.kept_alarms("a")[0].last_step == 30
    assert [(one.rule, one.run) for one in store.alarms(left)] == [("TW401", left)]
    assert [one.step for one in store.audits("a")] == [50]  # its checkpoint is still there
    store.add_all([point(step, scalars={"loss": 9.0}) for step in (40, 50)])
    assert store.scalars("a")["step"].to_pylist() == [0, 0, 10, 20, 30, 40, 50, 50]
    assert store.resume(Resumed("a", 30, 0.0)) == "a, left at step 50 (2)"
    assert store.resume(Resumed("a", 30, 0.0)) is None
    assert store.resume(Resumed("unknown", 30, 0.0)) is None


def test_points_that_were_written_while_the_clock_was_wrong_are_as_old_as_those_before_them(store, monkeypatch):
    now = 1.7e9
    monkeypatch.setattr("tailwise.history.prune.time.time", lambda: now)
    times = [now - 400 * 86400, now - 3600, now - 1800, now - 900 * 86400, now - 900 * 86400 + 60]
    store.add_all([replace(point(10 * i), time=time) for i, time in enumerate(times)])
    assert store.prune(Retention(older_than=30.0)) == 0  # the first always stays
    store.add_all([replace(point(1, run="b"), time=now - 400 * 86400), replace(point(2, run="b"), time=now)])
    assert store.prune(Retention(older_than=30.0), "b") == 0


def test_what_is_old_goes_whatever_one_point_of_the_future_says(store, monkeypatch):
    now = 1.7e9
    monkeypatch.setattr("tailwise.history.prune.time.time", lambda: now)
    times = [now + 1e8, now - 400 * 86400, now - 399 * 86400, now - 398 * 86400]
    store.add_all([replace(point(10 * i), time=time) for i, time in enumerate(times)])
    assert store.prune(Retention(older_than=30.0)) == 3


@pytest.mark.parametrize("url", ["sqlite:///{}", "sqlite+pysqlite:///{}"])
def test_an_address_of_sqlite_is_its_path(tmp_path, url):
    path = tmp_path / "x.db"
    with History(url.format(path)) as history:
        assert history.where == str(path)
        history.add_point(point(1))
    with QueuedHistory(url.format(path)) as writer:
        writer.write(point(2))
    with History(path) as history:
        assert [one.step for one in history.points("a")] == [1, 2]


def test_a_relative_address_of_sqlite_is_a_relative_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with History("sqlite:///x.db") as history:
        history.add_point(point(1))
    assert (tmp_path / "x.db").is_file()


@pytest.mark.parametrize("url", ["sqlite://", "sqlite:///", "sqlite:///:memory:", "sqlite://host/x.db"])
def test_an_address_of_sqlite_without_a_file_is_refused(url):
    with pytest.raises(UsageError, match="names no file"):
        History(url)


def test_the_latest_point_is_one_of_layers(store):
    notes = [Point("a", step, "cheap", 5.0, {}, {"eval_loss": 1.0}) for step in range(20, 80)]
    store.add_all([point(10), *notes])
    assert store.latest("a") == point(10)
    store.add_all([Point("b", 20, "cheap", 5.0, {}, {"eval_loss": 1.0})])
    assert store.latest("b").step == 20
    assert store.latest("a", cadence="full") is None


def test_notes_between_measurements_displace_none_of_them(store):
    store.add_all([point(step) for step in range(0, 100, 20)])
    store.add_all([Point("a", step, "cheap", 5.0, {}, {"loss": 1.0}) for step in range(1, 100) if step % 20])
    store.prune(Retention(keep_last=3))
    assert [one.step for one in store.points("a") if one.layers] == [0, 40, 60, 80]
    assert [one.step for one in store.points("a") if not one.layers] == [97, 98, 99]
