"""The contract: what is measured and when, and that a training is neither held up nor stopped."""

from __future__ import annotations

import json
import logging
import threading

import pytest
import torch

import tailwise as tw
from tailwise.history.jsonl import one_line, read_jsonl
from tailwise.history.point import Alarm, Point
from tailwise.history.store import History
from tailwise.training.alarms import Alarms
from tailwise.training.options import METRICS


def test_cheap_and_full_points_come_at_their_steps(model, kept, train, clock):
    with tw.Monitor(model, every=5, full_every=10, sinks=[kept], clock=clock) as monitor:
        train(model, monitor, 9, clock)
        monitor._solver.close(60)  # the full measurement of the start has ended
    assert [point.step for point in kept.of("cheap")] == [0, 5]
    assert [point.step for point in kept.of("full")] == [0]
    assert {point.run for point in kept.points} == {monitor.run}


def test_a_full_point_has_the_numbers_of_an_audit(model, kept):
    with tw.Monitor(model, sinks=[kept]):
        pass
    audit = tw.audit(model, metrics=METRICS, use_cache=False)
    (point,) = kept.of("full")
    assert set(point.layers) == {"0", "2"}
    for layer in audit:
        expected = {name: value for name, value in layer.row.metrics.items() if value is not None}
        assert point.layers[layer.row.name] == pytest.approx(expected, rel=1e-9)


def test_cheap_numbers_agree_with_the_matrix(model, kept, train, clock):
    with tw.Monitor(model, every=2, full="off", sinks=[kept], clock=clock) as monitor:
        train(model, monitor, 7, clock)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        train(model, monitor, 1, clock)
    last = kept.points[-1]
    assert last.step == 8
    for name in ("0", "2"):
        W, old = model.get_parameter(f"{name}.weight").detach(), before[f"{name}.weight"]
        sigma = torch.linalg.svdvals(W)
        assert last.layers[name]["frobenius_norm"] == pytest.approx(float(W.norm()), rel=1e-5)
        assert last.layers[name]["spectral_norm"] == pytest.approx(float(sigma[0]), rel=5e-3)
        assert last.layers[name]["spectral_norm"] <= float(sigma[0]) * (1 + 1e-5)
        assert last.layers[name]["stable_rank"] == pytest.approx(float((sigma**2).sum() / sigma[0] ** 2), rel=1e-2)
        assert last.layers[name]["update_ratio"] == pytest.approx(float((W - old).norm() / W.norm()), rel=1e-4)


def test_the_loss_of_the_step_is_in_the_point_and_is_not_waited_for(model, kept, train, clock):
    with tw.Monitor(model, every=3, full="off", sinks=[kept], clock=clock) as monitor:
        loss = train(model, monitor, 3, clock)
    assert kept.points[-1].scalars["loss"] == pytest.approx(float(loss))
    assert "monitor_overhead" in kept.points[-1].scalars


def test_what_is_noted_stands_at_the_step_where_it_was(model, kept):
    with tw.Monitor(model, every=10, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        for step in range(1, 35):
            monitor.step(loss=1.0)
            if step in (3, 20, 34):  # between points, at one, and after the last
                monitor.note(eval_loss=torch.tensor(4.0, requires_grad=True), accuracy=0.5)
    noted = [point for point in kept.points if "eval_loss" in point.scalars]
    assert [(point.step, point.cadence, dict(point.layers)) for point in noted] == [
        (3, "cheap", {}), (20, "cheap", {}), (34, "cheap", {}),
    ]  # fmt: skip
    assert [point.step for point in kept.points if point.layers] == [10, 20, 30]
    assert noted[0].scalars["eval_loss"] == 4.0
    assert noted[0].scalars["accuracy"] == 0.5


def test_an_evaluation_at_a_step_with_a_point_is_in_that_point_of_the_history(model, tmp_path):
    with tw.Monitor(model, every=10, full="off", history=tmp_path / "h.db", run="a", max_overhead=1.0) as monitor:
        for _ in range(10):
            monitor.step(loss=2.0)
        monitor.note(eval_loss=3.0)
    with History(tmp_path / "h.db") as history:
        (last,) = history.points("a", steps=(10, 10))
        assert (last.scalars["loss"], last.scalars["eval_loss"]) == (2.0, 3.0)
        assert last.layers
        assert history.latest("a", cadence="cheap") == last


@pytest.mark.parametrize("device_like", [False, True])
def test_the_loss_of_every_step_is_looked_at(model, kept, device_like):
    values = [1.0, 4.0, 2.5, float("inf"), 0.5]
    with tw.Monitor(model, every=5, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        for value in values:
            monitor.step(loss=torch.tensor([value], requires_grad=True) if device_like else value)
    scalars = kept.points[-1].scalars
    assert scalars["loss"] == 0.5
    assert [scalars[name] for name in ("loss_min", "loss_mean", "loss_max", "loss_not_finite")] == [0.5, 2.0, 4.0, 1.0]
    (alarm,) = [alarm for alarm in monitor.alarms if alarm.rule == "TW701"]
    assert (alarm.step, alarm.since, alarm.severity) == (4, 4, "error")


def test_losses_that_no_point_comes_for_are_looked_at_all_the_same(model):
    """At the defaults of the README, thirty losses that are NaN raise an alarm of the step of the first."""
    with tw.Monitor(model) as monitor:
        for step in range(60):
            monitor.step(loss=float("nan") if step >= 30 else 1.0)
    assert [(alarm.rule, alarm.step) for alarm in monitor.alarms] == [("TW701", 31)]


def test_a_loss_that_leaves_for_the_billions_is_an_alarm_at_the_defaults(model):
    with tw.Monitor(model) as monitor:
        for step in range(300):
            monitor.step(loss=torch.tensor(2.0 + 0.01 * (step % 7) if step < 200 else 2.0 * 2.0 ** ((step - 200) / 2)))
    (alarm,) = monitor.alarms
    assert alarm.rule == "TW702"
    assert 200 <= alarm.step <= 215


def test_two_runs_of_one_second_have_names_of_their_own(model):
    names = set()
    for _ in range(5):
        with tw.Monitor(model, full="off") as monitor:
            names.add(monitor.run)
    assert len(names) == 5


def test_steps_that_count_two_at_a_time_have_an_update_ratio(model, kept, train):
    with tw.Monitor(model, every=10, full="off", sinks=[kept], max_overhead=1.0) as monitor:
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for step in range(2, 41, 2):
            model(torch.randn(4, 48)).square().mean().backward()
            optimizer.step()
            monitor.step(step=step)
    assert [point.step for point in kept.points] == [0, 10, 20, 30, 40]
    assert all("update_ratio" in values for point in kept.points[1:] for values in point.layers.values())


@pytest.mark.parametrize("again", ["another process", "the same loop"])
@pytest.mark.parametrize("name", ["h.db", "h.jsonl"])
def test_a_run_that_goes_on_from_an_earlier_step_is_one_line(model, tmp_path, again, name):
    path, settings = tmp_path / name, {"every": 10, "full": "off", "max_overhead": 1.0, "run": "a"}
    monitor = tw.Monitor(model, history=path, **settings)
    for step in range(1, 61):
        monitor.step(step=step, loss=1.0)
    if again == "another process":
        monitor.close()
        monitor = tw.Monitor(model, history=path, first_step=30, **settings)
    for step in range(31, 51):
        monitor.step(step=step, loss=2.0)
    monitor.close()
    if name == "h.jsonl":
        points = [item for item in one_line(read_jsonl(path)) if isinstance(item, Point)]
        found = {point.step: point.scalars.get("loss") for point in points}
    else:
        with History(path) as history:
            found = {point.step: point.scalars.get("loss") for point in history.points("a")}
            assert [run.name for run in history.runs()] == ["a", "a, left at step 60"]
            assert [point.step for point in history.points("a, left at step 60")] == [40, 50, 60]
            assert set(history.series("a", ["spectral_norm"])["step"].to_pylist()) == {0, 10, 20, 30, 40, 50}
    assert found == {0: None, 10: 1.0, 20: 1.0, 30: 1.0, 40: 2.0, 50: 2.0}


def test_a_run_whose_time_allows_no_point_says_so_and_which_option_changes_it(model, kept, clock, caplog):
    caplog.set_level(logging.WARNING, "tailwise.monitor")
    with tw.Monitor(model, every=5, full="off", at_start=False, sinks=[kept], clock=clock) as monitor:
        monitor._meter.spent = 1.0  # as if the first look had cost a second
        for _ in range(20):
            monitor.step(loss=1.0)
    assert kept.points == []
    for said in (str(monitor.report()), caplog.text):
        assert "4 measurements were due in 20 steps and none was taken" in said
        assert "max_overhead=1" in said


def test_the_optimizer_is_in_the_history(model, tmp_path):
    optimizers = [torch.optim.Muon([model[0].weight], lr=0.01), torch.optim.AdamW([model[2].weight], lr=0.5)]
    with tw.Monitor(model, full="off", history=tmp_path / "h.db", run="a", optimizer=optimizers):
        pass
    with History(tmp_path / "h.db") as history:
        assert history.optimizer("a") == "Muon, AdamW"
        assert history.latest("a").scalars["lr"] == 0.01
    with tw.Monitor(model, full="off", history=tmp_path / "h.db", run="b"):
        pass
    with History(tmp_path / "h.db") as history:
        assert history.optimizer("b") == ""


@pytest.mark.parametrize("wrong", [None, "high", torch.ones(2), [1.0]])
def test_a_scalar_that_is_none_costs_itself_alone(model, kept, wrong):
    with tw.Monitor(model, every=1, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        monitor.step(loss=1.0, other=wrong)
    (point,) = kept.points
    assert point.scalars["loss"] == 1.0
    assert "other" not in point.scalars
    assert "no single number: other" in point.notes
    assert monitor.report().errors == ()


@pytest.mark.parametrize("estimator", ["ks", "mid", "farms"])
def test_the_estimator_is_that_of_an_audit(model, kept, estimator):
    with tw.Monitor(model, estimator=estimator, sinks=[kept]):
        pass
    (full,) = kept.of("full")
    audit = tw.audit(model, estimator=estimator, use_cache=False)
    assert {name: values["alpha"] for name, values in full.layers.items()} == {
        name: pytest.approx(audit[name].alpha) for name in ("0", "2")
    }


def test_traps_are_counted_where_the_metrics_name_them(kept):
    torch.manual_seed(0)
    model = torch.nn.Linear(64, 64)
    with torch.no_grad():
        model.weight[3, 5] = 40.0
    with tw.Monitor(model, metrics=("alpha", "num_traps"), sinks=[kept]):
        pass
    (full,) = kept.of("full")
    assert full.layers["weight"]["num_traps"] >= 1


@pytest.mark.parametrize(("every", "full_every", "full_at"), [
    (4, 10, [0, 12, 20, 32, 40]), (5, 3, [0, 5, 10, 15, 20, 25, 30, 35, 40]), (10, 20, [0, 20, 40]), (4, 50, [0]),
])  # fmt: skip
def test_a_full_measurement_comes_with_the_first_cheap_one_after_each_multiple(model, kept, every, full_every, full_at):
    with tw.Monitor(model, every=every, full_every=full_every, sinks=[kept], max_overhead=1.0) as monitor:
        for _ in range(40):
            _until_idle(monitor)
            monitor.step()
    assert [point.step for point in kept.of("full")] == full_at


def test_a_step_that_is_no_number_does_not_reach_the_training(model, kept):
    with tw.Monitor(model, every=1, full="off", at_start=False, sinks=[kept], max_overhead=1.0) as monitor:
        for step in (torch.tensor(7), "many", [1], "8"):
            monitor.step(step=step)
    assert [point.step for point in kept.points] == [7, 8]
    assert "the number of a step" in monitor.report().errors[0]


def test_a_run_that_goes_on_counts_from_where_it_was(model, kept, clock):
    with tw.Monitor(model, every=100, full="off", sinks=[kept], first_step=250, clock=clock) as monitor:
        clock.now = 1000.0
        monitor.step(step=299)
        monitor.step(step=300)
    assert [point.step for point in kept.points] == [250, 300]


def test_history_is_a_file_of_json_lines_where_its_name_says_so(model, tmp_path):
    path = tmp_path / "runs" / "a.jsonl"
    with tw.Monitor(model, history=path, run="a"):
        pass
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert {(line["cadence"], line["run"], line["step"]) for line in lines} == {("cheap", "a", 0), ("full", "a", 0)}


def test_any_other_name_is_opened_as_a_history_and_closed_again(model, kept, monkeypatch):
    opened, closed = [], threading.Event()
    kept.close = closed.set
    monkeypatch.setattr("tailwise.training.monitor.open_writer", lambda uri: opened.append(uri) or kept)
    alarm = Alarm("run", 0, 0.0, "TW499", "note", "a point came")
    with tw.Monitor(model, history="runs.db", full="off", rules=[lambda point: [alarm]]):
        pass
    assert opened == ["runs.db"]
    assert [type(item).__name__ for item in kept.points] == ["Point", "Alarm"]
    assert closed.is_set()


def test_what_takes_no_points_is_a_usage_error(model):
    with pytest.raises(tw.UsageError, match="takes no points"):
        tw.Monitor(model, history=7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"evry": 3}, "did you mean every|no setting"),
        ({"every": 0}, "every is 0"),
        ({"full": "quick"}, "full is 'quick'"),
        ({"max_overhead": 0.0}, "max_overhead"),
        ({"full_every": 0}, "full_every"),
        ({"every": 2.5}, "whole number"),
        ({"estimator": "kss"}, "no estimator named 'kss'"),
        ({"rules": Alarms()}, "rules is no list"),
        ({"rules": [3]}, "3 is no rule"),
        ({"sinks": 3}, "sinks is no list"),
        ({"on_alarm": 3}, "on_alarm is 3"),
        ({"optimizer": 3}, "int is no optimizer"),
        ({"full": "lanczos", "metrics": ["alpha"]}, "leave metrics out"),
        ({"metrics": ["alhpa"]}, "no metric named 'alhpa'"),
        ({"layers": "nowhere"}, "no matrix to watch"),
    ],
)
def test_wrong_settings_are_usage_errors(model, settings, message):
    with pytest.raises(tw.UsageError, match=message):
        tw.Monitor(model, **settings)


def test_a_measurement_that_costs_too_much_is_skipped_and_noted(model, kept, train, clock, monkeypatch):
    monitor = tw.Monitor(model, every=10, full="off", sinks=[kept], clock=clock, max_overhead=0.1)
    measure = monitor._cheap.measure

    def slow(tensors):
        clock.now += 3.0
        return measure(tensors)

    monkeypatch.setattr(monitor._cheap, "measure", slow)
    with monitor:
        train(model, monitor, 60, clock)
    # 3 s are 10 % of 30 s: after the first that was not foreseen, each has to wait until they are.
    assert [point.step for point in kept.points] == [0, 10, 60]
    assert "more than max_overhead" in kept.points[-1].notes[0]
    report = monitor.report()
    assert report.overhead == pytest.approx(6.0 / 66.0)
    assert sum(report.skipped.values()) == 4
    assert "skipped 4×" in str(report)


def test_a_full_measurement_that_is_due_while_one_runs_is_skipped_and_noted(model, kept, train, clock, monkeypatch):
    monitor = tw.Monitor(model, every=5, full_every=5, sinks=[kept], clock=clock, at_start=False)
    running, go = threading.Event(), threading.Event()
    measured = monitor._solver._measured

    def held(job):
        running.set()
        assert go.wait(600)
        return measured(job)

    monkeypatch.setattr(monitor._solver, "_measured", held)
    with monitor:
        train(model, monitor, 5, clock)
        assert running.wait(600)
        train(model, monitor, 10, clock)
        go.set()
    assert [point.step for point in kept.of("full")] == [5]
    assert [len(point.notes) for point in kept.of("cheap")] == [0, 1, 1]
    assert "still running" in kept.of("cheap")[1].notes[0]
    assert monitor.report().full == 1


def test_an_error_inside_is_logged_once_and_the_training_goes_on(model, kept, train, clock, monkeypatch, caplog):
    monitor = tw.Monitor(model, every=1, full="off", sinks=[kept], clock=clock, at_start=False)

    def broken(tensors):
        raise ValueError("broken")

    monkeypatch.setattr(monitor._cheap, "measure", broken)
    with caplog.at_level(logging.ERROR, "tailwise.monitor"), monitor:
        train(model, monitor, 4, clock)
    assert len(caplog.records) == 1
    assert "broken" in caplog.text
    assert "4×" in monitor.report().errors[0]


def test_a_sink_that_fails_is_logged_once_and_harms_no_other(model, kept, train, clock, caplog):
    caplog.set_level(logging.ERROR, "tailwise.monitor")

    class Broken:
        def write(self, point):
            raise OSError("disk full")

    with tw.Monitor(model, every=1, full="off", sinks=[Broken(), kept], clock=clock) as monitor:
        train(model, monitor, 3, clock)
    assert len(caplog.records) == 1
    assert len(kept.points) == 4


def test_a_rule_sees_every_point_and_its_alarms_are_handed_on(model, kept, train, clock):
    heard = []

    def rule(point):
        if point.step < 2:
            return []
        return [Alarm(point.run, point.step, point.time, "TW499", "note", "two steps are done")]

    def deaf(point):
        raise RuntimeError("a rule that fails")

    with tw.Monitor(
        model, every=1, full="off", sinks=[kept], rules=[deaf, rule], on_alarm=heard.append, clock=clock
    ) as monitor:
        train(model, monitor, 3, clock)
    assert [alarm.step for alarm in heard] == [2, 3]
    assert tuple(heard) == monitor.alarms
    assert monitor.report().alarms == 2


def nan_losses(model, **settings):
    """A monitor that thirty losses in a row were no numbers for."""
    with tw.Monitor(model, every=1, full="off", max_overhead=1.0, **settings) as monitor:
        for _ in range(30):
            monitor.step(loss=float("nan"))
    return monitor


def test_all_rules_look_unless_told_otherwise(model, tmp_path):
    monitor = nan_losses(model, history=tmp_path / "runs.db", run="a")
    assert [alarm.rule for alarm in monitor.alarms] == ["TW701"]
    assert monitor.report().rules == len(Alarms().rules) > 5
    assert f"1 alarms of {len(Alarms().rules)} rules" in str(monitor.report())
    with History(tmp_path / "runs.db") as history:
        assert [alarm.rule for alarm in history.alarms("a")] == ["TW701"]


def test_where_no_rule_looks_the_report_and_the_history_say_so(model, tmp_path):
    monitor = nan_losses(model, history=tmp_path / "runs.db", run="a", rules=())
    assert monitor.alarms == ()
    assert "no alarm rule looked" in str(monitor.report())
    with History(tmp_path / "runs.db") as history:
        assert "No alarm rule looked at this run" in history.no_alarm("a")


def test_silence_is_told_from_deafness(model, tmp_path):
    with tw.Monitor(model, full="off", history=tmp_path / "runs.db", run="a"):
        pass
    with History(tmp_path / "runs.db") as history:
        assert history.no_alarm("a") == f"No alarm; {len(Alarms().rules)} rules looked."
        history.add_point(Point("old", 0, "cheap", 0.0, {}))
        assert "Whether a rule looked at this run is not" in history.no_alarm("old")


def test_closing_twice_and_stepping_afterwards_do_nothing(model, kept, train, clock):
    monitor = tw.Monitor(model, every=1, full="off", sinks=[kept], clock=clock)
    monitor.close()
    monitor.close()
    train(model, monitor, 2, clock)
    assert len(kept.points) == 1


def test_closing_does_not_wait_for_a_long_measurement(model, kept, clock):
    monitor = tw.Monitor(model, sinks=[kept], clock=clock)
    monitor._solver.stop.set()
    monitor.close(timeout=5.0)
    stopped = [note for point in kept.of("full") for note in point.notes if "not reached" in note]
    assert stopped or set(kept.of("full")[0].layers) == {"0", "2"}


def test_a_model_that_does_not_fit_into_a_snapshot_is_taken_in_turns(model, kept, train, clock):
    largest = model[0].weight.numel() * 4
    monitor = tw.Monitor(model, every=1, full_every=1, sinks=[kept], clock=clock, snapshot_bytes=largest)
    with monitor:
        for _ in range(3):
            _until_idle(monitor)
            train(model, monitor, 1, clock)
    assert [set(point.layers) for point in kept.of("full")] == [{"0"}, {"2"}, {"0"}, {"2"}]
    assert "turn comes next" in kept.of("full")[0].notes[0]


def test_points_that_the_sinks_are_too_slow_for_are_dropped_and_counted(model, clock, train, monkeypatch):
    monkeypatch.setattr("tailwise.training.emitter.WAITING", 1)
    writing, go = threading.Event(), threading.Event()

    class Slow:
        def write(self, point):
            writing.set()
            assert go.wait(600)

    with tw.Monitor(model, every=1, full="off", sinks=[Slow()], clock=clock) as monitor:
        assert writing.wait(600)
        train(model, monitor, 4, clock)
        go.set()
    assert monitor.report().skipped == {"a point was dropped, since the sinks are slower than the measurements": 3}


def test_a_snapshot_that_cannot_be_measured_at_all_is_noted(model, kept, train, clock, monkeypatch):
    monitor = tw.Monitor(model, every=5, full_every=5, sinks=[kept], clock=clock, at_start=False)

    def broken(job):
        raise MemoryError

    monkeypatch.setattr(monitor._solver, "_measured", broken)
    with monitor:
        train(model, monitor, 5, clock)
    assert kept.of("full")[0].layers == {}
    assert "out of memory" in kept.of("full")[0].notes[0]


def test_estimates_by_lanczos_take_the_place_of_the_audit(model, kept):
    with tw.Monitor(model, full="lanczos", sinks=[kept]):
        pass
    (point,) = kept.of("full")
    layer, exact = point.layers["0"], tw.audit(model, use_cache=False)["0"]
    assert layer["singular_entropy_low"] <= exact.singular_entropy <= layer["singular_entropy_high"]
    assert layer["stable_rank"] == pytest.approx(exact.stable_rank, rel=1e-4)


def test_the_number_of_blas_threads_of_the_training_stays(model):
    before = torch.get_num_threads()
    with tw.Monitor(model):
        assert torch.get_num_threads() == before
    assert torch.get_num_threads() == before


def _until_idle(monitor):
    with monitor._solver._wake:
        assert monitor._solver._wake.wait_for(lambda: monitor._solver._job is None, 600)
