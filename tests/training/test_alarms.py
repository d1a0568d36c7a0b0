"""The alarm rules over made-up runs: each sees its sign where it begins, and nothing in a healthy run."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import replace

import pytest
from alarm_points import LAYERS, ONE, codes, healthy, healthy_run, loss, only, point, sick

from tailwise.core.errors import UsageError
from tailwise.history.point import Point
from tailwise.judging import thresholds
from tailwise.judging.diagnosis.rule import RULES
from tailwise.training.alarm_rule import ALARM_RULES, alarm_rule
from tailwise.training.alarm_watch import HISTORY, AlarmWatch
from tailwise.training.alarms import Alarms


def test_a_healthy_run_raises_nothing():
    assert Alarms().replay(healthy_run(300)) == []


@pytest.mark.parametrize(("changes", "code", "severity"), [
    (lambda step: {ONE: {"spectral_norm": 2.2 * 1.3 ** ((step - 190) / 10)}}, "TW703", "error"),
    ({ONE: {"update_ratio": 0.3}}, "TW704", "error"),
    ({ONE: {"update_ratio": 0.0}}, "TW705", "warning"),
    ({ONE: {"stable_rank": 4.0}}, "TW706", "warning"),
    ({ONE: {"singular_entropy": 0.9}}, "TW707", "warning"),
    ({ONE: {"alpha": 1.4}}, "TW709", "warning"),
    ({ONE: {"alpha": 16.0}}, "TW709", "warning"),
    ({ONE: {"num_traps": 5.0}}, "TW710", "warning"),
])  # fmt: skip
def test_a_sick_layer_is_named_once_with_the_step_where_it_began(changes, code, severity):
    found = only(sick(changes), code)
    assert len(found) == 1
    assert found[0].layers == (ONE,)
    assert found[0].severity == severity
    assert 200 <= found[0].step <= 230
    assert 180 <= found[0].since <= 210
    assert ONE in found[0].title
    assert all(map(math.isfinite, found[0].evidence.values()))


def test_a_run_that_went_back_keeps_cheap_points_that_come_before_the_full_one_of_an_earlier_step():
    watch = AlarmWatch(frozenset({"spectral_norm"}), frozenset(), {})
    cheap = [replace(point(step), cadence="cheap") for step in range(0, 100, 10)]
    for taken in (point(0), *cheap[:5], point(40), *cheap[5:], point(80)):
        watch.take(taken)
    # Back to step 40, whose full measurement ends after cheap points of later steps.
    for taken in (*cheap[4:8], point(40)):
        watch.take(taken)
    tracks = {cadence: watch._tracks[cadence, LAYERS[0], "spectral_norm"] for cadence in ("cheap", "full")}
    assert list(tracks["cheap"].steps) == list(range(0, 80, 10))
    assert list(tracks["full"].steps) == [0, 40]


@pytest.mark.parametrize(("changes", "named"), [
    ({ONE: {"spectral_norm": math.nan}}, {}),
    ({ONE: {"frobenius": math.inf}}, {}),
    ({}, {"notes": (f"{ONE} is not measured: 3 NaN and 0 Inf, the first at row 1",)}),
])  # fmt: skip
def test_layers_that_are_not_finite_are_an_error(changes, named):
    (found,) = only(sick(changes, start=250, **named), "TW701")
    assert (found.step, found.since, found.layers, found.severity) == (250, 250, (ONE,), "error")


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens"])
def test_spectra_of_embeddings_and_heads_are_not_judged_but_their_updates_are(name):
    layers = (*LAYERS[:5], name)
    bad = {"stable_rank": 1.2, "alpha": 1.4, "singular_entropy": 2.0, "spectral_norm": 900.0, "num_traps": 9.0}
    points = [point(step, {name: bad if step >= 200 else {}}, layers=layers) for step in range(0, 300, 10)]
    assert codes(points) == set()
    points += [point(step, {name: {"update_ratio": 0.4}}, layers=layers) for step in range(300, 330, 10)]
    assert codes(points) == {"TW704"}


def test_null_in_a_stored_point_is_not_finite():
    (found,) = only(sick({ONE: {"spectral_norm": None}}, scalars={"eval_loss": None}), "TW701")
    assert found.layers == (ONE,)


def test_an_undefined_metric_and_a_zero_matrix_are_not_called_not_finite():
    assert codes(sick({ONE: {"alpha_hill": math.nan, "log_norm": -math.inf}})) == set()


def test_where_all_layers_blow_up_from_the_start_no_history_is_needed():
    points = [
        point(step, {"*": {"spectral_norm": 0.5 * 3 ** (step / 10), "frobenius": 2.5 * 2 ** (step / 10)}})
        for step in range(0, 40, 10)
    ]
    (found,) = only(points, "TW703")
    assert found.step <= 20
    assert set(found.layers) == set(LAYERS)


def test_layers_that_never_moved_are_frozen_on_purpose():
    assert codes([point(step, {ONE: {"update_ratio": 0.0}}) for step in range(0, 400, 10)]) == set()


def test_a_poor_fit_of_alpha_gives_no_verdict():
    assert codes(sick({ONE: {"alpha": 1.4, "ks_distance": 0.2}})) == set()
    assert codes(sick({ONE: {"alpha": 1.4, "num_pl_spikes": 5.0}})) == set()


def test_alphas_that_were_never_in_the_band_do_not_drift_out_of_it():
    assert codes([point(step, {ONE: {"alpha": 1.4}}) for step in range(0, 300, 10)]) == set()


def test_an_alarm_is_raised_again_only_after_it_has_cleared():
    def flicker(step):
        return {ONE: {"update_ratio": 0.3 if step % 40 else 0.002}}

    assert len(only(sick(flicker, count=60), "TW704")) == 1
    twice = sick(lambda step: {ONE: {"update_ratio": 0.3 if step < 250 or 350 <= step < 400 else 0.002}}, count=60)
    assert [alarm.step for alarm in only(twice, "TW704")] == [210, 360]


def test_a_layer_that_falls_ill_later_has_an_alarm_of_its_own():
    def spreading(step):
        return {LAYERS[0]: {"update_ratio": 0.3}} | ({LAYERS[1]: {"update_ratio": 0.4}} if step >= 250 else {})

    found = only(sick(spreading), "TW704")
    assert [alarm.layers for alarm in found] == [(LAYERS[0],), (LAYERS[1],)]
    assert found[0].key != found[1].key


def test_what_is_in_alarm_can_be_asked_for_and_clears():
    alarms = Alarms()
    alarms.replay(sick({ONE: {"update_ratio": 0.3}}))
    assert alarms.active("r") == [("TW704", ONE)]
    alarms.replay(point(step) for step in range(300, 340, 10))
    assert alarms.active("r") == []
    assert alarms.active("other") == []


def test_runs_are_kept_apart():
    alarms = Alarms()
    for one, other in zip(healthy_run(30), sick({ONE: {"update_ratio": 0.3}}), strict=True):
        assert alarms.see(one) == []
        alarms.see(Point("sick", *[getattr(other, name) for name in ("step", "cadence", "time", "layers", "scalars")]))
    assert alarms.active("r") == []
    assert alarms.active("sick") == [("TW704", ONE)]


def test_a_full_point_that_comes_late_does_not_send_the_run_back():
    cheap, full = [], []
    for one in sick({ONE: {"stable_rank": 4.0}}):
        full.append(one)
        cheap.append(replace(one, cadence="cheap"))
    # Each spectrum is ready two points late.
    mixed = [one for pair in zip(cheap[2:], full, strict=False) for one in pair]
    (found,) = only([*cheap[:2], *mixed], "TW706")
    assert (found.step, found.layers) == (200, (ONE,))


def test_the_two_cadences_share_one_alarm():
    alarms = Alarms()
    points = sick({ONE: {"stable_rank": 4.0}})
    both = [
        alarm for one in points for cadence in ("cheap", "full") for alarm in alarms.see(replace(one, cadence=cadence))
    ]
    assert len(both) == 1


def test_one_by_one_and_in_one_call_are_the_same():
    points = sick({ONE: {"stable_rank": 4.0, "update_ratio": 0.3}})
    alarms = Alarms()
    assert [alarm for one in points for alarm in alarms(one)] == Alarms().replay(points)


def test_a_run_that_goes_back_to_a_checkpoint_forgets_what_came_after():
    alarms = Alarms()
    alarms.replay(sick({ONE: {"stable_rank": 4.0}}, count=24))
    again = [point(step) for step in range(200, 500, 10)]
    assert alarms.replay(again) == []


def test_a_resumed_run_that_replays_its_history_goes_on_as_if_unbroken():
    points = sick({ONE: {"update_ratio": 0.3}})
    told = []
    alarms = Alarms(on_alarm=told.append)
    assert len(alarms.replay(points[:25])) == 1
    assert [alarm for one in points[25:] for alarm in alarms.see(one)] == []
    assert told == []


def test_cheap_points_are_judged_by_the_rules_that_can_look():
    cheap = {"spectral_norm", "frobenius", "stable_rank", "update_ratio"}
    points = []
    for one in sick({ONE: {"update_ratio": 0.3, "alpha": 1.3}}):
        layers = {name: {key: v for key, v in values.items() if key in cheap} for name, values in one.layers.items()}
        points.append(Point(one.run, one.step, "cheap", one.time, layers, one.scalars))
    assert codes(points) == {"TW704"}


def test_norms_of_an_audit_serve_as_those_of_the_monitor():
    def audited(one):
        layers = {
            name: {"frobenius_norm": v["frobenius"], "log_spectral_norm": 2 * math.log10(v["spectral_norm"])}
            for name, v in one.layers.items()
        }
        return Point(one.run, one.step, "full", one.time, layers)

    points = sick(lambda step: {ONE: {"spectral_norm": 2.2 * 1.3 ** ((step - 190) / 10)}})
    assert codes([audited(one) for one in points]) == {"TW703"}


@pytest.mark.parametrize("metric", sorted(healthy(0)))
@pytest.mark.parametrize("value", [0.0, -1.0, 1e300, math.nan, math.inf, -math.inf])
def test_no_value_raises_into_the_training(metric, value):
    Alarms().replay(sick({ONE: {metric: value}}))
    Alarms().replay(sick({}, scalars={"loss": value, "eval_loss": value}))


def test_points_with_nothing_in_them_are_taken():
    empty = Point("r", 0, "cheap", 0.0, {})
    assert Alarms().replay([empty, Point("r", 1, "full", 0.0, {ONE: {}}), empty]) == []


def test_memory_and_time_of_a_point_do_not_grow():
    alarms = Alarms()
    alarms.replay(healthy_run(60))
    tracks = alarms._runs["r"].watch._tracks
    assert max(map(len, tracks.values())) == HISTORY
    size = len(tracks)
    began = time.process_time()
    alarms.replay(point(step) for step in range(600, 1600, 10))
    assert len(tracks) == size
    assert max(map(len, tracks.values())) == HISTORY
    assert (time.process_time() - began) / 100 < 0.05


def test_rules_can_be_chosen_and_muted():
    points = sick({ONE: {"update_ratio": 0.3, "stable_rank": 4.0}})
    assert codes(points) == {"TW704", "TW706"}
    assert codes(points, rules=["TW706"]) == {"TW706"}
    assert codes(points, mute=["TW706"]) == {"TW704"}


def test_thresholds_can_be_changed_by_a_mapping_or_a_file(tmp_path):
    points = sick({ONE: {"update_ratio": 0.3}})
    assert codes(points, thresholds={"large_update": 0.5, "update_jump": 500}) == set()
    path = tmp_path / "limits.toml"
    path.write_text("large_update = 0.5\nupdate_jump = 500\n")
    assert codes(points, thresholds=path) == set()


@pytest.mark.parametrize(("named", "what"), [
    ({"rules": ["TW799"]}, "alarm rule"), ({"mute": ["TW7"]}, "alarm rule"), ({"stop_on": "fatal"}, "severity"),
    ({"stop_on": ["TW799"]}, "alarm rule"), ({"thresholds": {"zz": 1}}, "threshold"),
])  # fmt: skip
def test_unknown_names_are_refused(named, what):
    with pytest.raises(UsageError, match=what):
        Alarms(**named)


def test_every_rule_has_causes_remedies_references_and_its_limits_exist():
    for code, rule in ALARM_RULES.items():
        assert all((rule.summary, rule.causes, rule.remedies, rule.references))
        assert thresholds.of_rule(code) == rule.thresholds != []
    used = {code for item in thresholds.TABLE for code in item.rules}
    assert {code for code in used if code.startswith("TW7")} == set(ALARM_RULES)
    assert used <= {*RULES, *ALARM_RULES}


def test_one_file_of_thresholds_serves_an_audit_and_a_run(tmp_path):
    path = tmp_path / "thresholds.toml"
    path.write_text("noise_z = 5\nlarge_update = 0.5\ncollapse_stable_rank = 1.25\n")
    on_audits, on_runs = thresholds.resolved(path, RULES), Alarms(thresholds=path).limits
    assert (on_audits["noise_z"], on_audits["collapse_stable_rank"]) == (5, 1.25)
    assert (on_runs["large_update"], on_runs["collapse_stable_rank"]) == (0.5, 1.25)
    assert "large_update" not in on_audits
    assert "noise_z" not in on_runs
    path.write_text("noise_zz = 5\n")
    with pytest.raises(UsageError, match="noise_zz"):
        Alarms(thresholds=path)
    with pytest.raises(UsageError, match="noise_z is of TW103, TW201"):
        Alarms(thresholds={"noise_z": 5})


def test_a_rule_of_ones_own_is_asked():
    @alarm_rule("XY701", title="too small", severity="note", strength="heuristic", needs=["frobenius"], causes=["c"],
                remedies=["r"], references=["s"])  # fmt: skip
    def small(watch):
        """The norm is small."""
        from tailwise.training.alarm_rule import Sign

        return {n: Sign("small", 1.0, {}) for n, (t,) in watch.now("frobenius").items() if t.last < 5}

    try:
        (found,) = Alarms(["XY701"]).replay([point(0, {ONE: {"frobenius": 1.0}})])
        assert (found.rule, found.since, found.layers) == ("XY701", 0, (ONE,))
    finally:
        del ALARM_RULES._items["XY701"]


def test_a_code_must_look_like_one():
    with pytest.raises(TypeError, match="TW701"):
        alarm_rule("701", title="", severity="note", strength="theory", causes=[], remedies=[], references=[])


def test_without_ruptures_the_largest_step_is_where_it_began(monkeypatch):
    monkeypatch.setitem(sys.modules, "ruptures", None)
    (found,) = only(sick({ONE: {"update_ratio": 0.3}}), "TW704")
    assert found.since == 200


@pytest.mark.parametrize(("stop_on", "stops"), [
    ("note", True), ("warning", True), ("error", False), (["warning"], True), (["note"], True), ("TW702", True),
    (["TW702"], True), ("TW701", False), (["TW701", "error"], False), ((), False),
])  # fmt: skip
def test_a_severity_to_stop_on_means_the_worse_ones_too_alone_or_in_a_list(stop_on, stops):
    alarms = Alarms("TW702", stop_on=stop_on)  # a warning
    for taken in sick({}, scalars=lambda step: {"loss": 9.0 if step == 250 else loss(step)}):
        alarms.see(taken)
    assert alarms.should_stop is stops


def test_a_run_knows_its_optimizer():
    watch = AlarmWatch(frozenset(), frozenset(), {})
    watch.take(Point("r", 0, "cheap", 0.0, {}, {}, ("optimizer: Muon, AdamW",)))
    watch.take(Point("r", 10, "cheap", 0.0, {}))
    assert watch.optimizer == "Muon, AdamW"


@pytest.mark.parametrize(("optimizer", "alpha", "expected"), [
    ("AdamW", 7.5, {"TW709"}), ("Muon, AdamW", 7.5, set()), ("Muon, AdamW", 16.0, {"TW709"}), ("Muon", 1.4, {"TW709"}),
])  # fmt: skip
def test_the_band_of_alpha_is_that_of_the_optimizer(optimizer, alpha, expected):
    points = sick({ONE: {"alpha": alpha, "num_pl_spikes": 4000.0, "ks_distance": 0.001}})
    points[0] = replace(points[0], notes=(f"optimizer: {optimizer}",))
    assert codes(points) == expected
