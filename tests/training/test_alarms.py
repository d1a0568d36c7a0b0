"""The alarm rules over made-up runs: each sees its sign where it begins, and nothing in a healthy run."""

from __future__ import annotations

import math
import random
import sys
import time
from dataclasses import replace

import pytest
from alarm_points import LAYERS, healthy, healthy_run, loss, point

from tailwise.core.errors import UsageError
from tailwise.history.point import Point
from tailwise.judging import thresholds
from tailwise.judging.diagnosis.rule import RULES
from tailwise.training.alarm_rule import ALARM_RULES, alarm_rule
from tailwise.training.alarm_watch import HISTORY, AlarmWatch
from tailwise.training.alarms import Alarms

ONE = LAYERS[2]


def sick(changes, *, start=200, count=30, **named):
    """A healthy run whose points from step `start` on have `changes` (a function of the step, or fixed)."""
    made = healthy_run(start // 10)
    for step in range(start, count * 10, 10):
        found = changes(step) if callable(changes) else changes
        made.append(point(step, found, **{key: (v(step) if callable(v) else v) for key, v in named.items()}))
    return made


def codes(points, **named):
    return {alarm.rule for alarm in Alarms(**named).replay(points)}


def only(points, code):
    """The alarms, which are all of one rule."""
    found = Alarms().replay(points)
    assert {alarm.rule for alarm in found} == {code}
    return found


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


def test_a_spike_of_the_loss_is_of_the_whole_model():
    (found,) = only(sick({}, scalars=lambda step: {"loss": 9.0 if step == 250 else loss(step)}), "TW702")
    assert (found.step, found.since, found.layers) == (250, 250, ())


def test_a_loss_next_to_nothing_is_memorising():
    (found,) = only(sick({}, scalars={"loss": 0.01}), "TW711")
    assert found.severity == "note"


def test_a_held_out_loss_that_rises_while_training_goes_on_is_over_fitting():
    def held(step):
        return {"eval_loss": loss(step) if step < 150 else 4.0 + 0.02 * (step - 150)}

    points = [point(step, scalars=held(step)) for step in range(0, 300, 10)]
    (found,) = only(points, "TW712")
    assert 150 < found.step < 250


def test_held_out_losses_need_not_come_with_a_training_loss():
    points = []
    for step in range(0, 600, 10):
        both = point(step)
        held = {"eval_loss": loss(step) if step < 150 else 4.0 + 0.02 * (step - 150)}
        points.append(replace(both, scalars=held if step % 20 else {"loss": loss(step)}))
    assert len(only(points, "TW712")) == 1


def test_a_run_that_went_back_keeps_cheap_points_that_come_before_the_full_one_of_an_earlier_step():
    watch = AlarmWatch(frozenset({"spectral_norm"}), frozenset(), {})
    cheap = [replace(point(step), tempo="cheap") for step in range(0, 100, 10)]
    for taken in (point(0), *cheap[:5], point(40), *cheap[5:], point(80)):
        watch.take(taken)
    # Back to step 40, whose full measurement ends after cheap points of later steps.
    for taken in (*cheap[4:8], point(40)):
        watch.take(taken)
    tracks = {tempo: watch._tracks[tempo, LAYERS[0], "spectral_norm"] for tempo in ("cheap", "full")}
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


def test_a_loss_that_is_not_finite_is_an_error():
    (found,) = only(sick({}, scalars={"loss": math.nan}), "TW701")
    assert found.layers == ()


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
        alarms.see(Point("sick", *[getattr(other, name) for name in ("step", "tempo", "time", "layers", "scalars")]))
    assert alarms.active("r") == []
    assert alarms.active("sick") == [("TW704", ONE)]


def test_a_full_point_that_comes_late_does_not_send_the_run_back():
    cheap, full = [], []
    for one in sick({ONE: {"stable_rank": 4.0}}):
        full.append(one)
        cheap.append(replace(one, tempo="cheap"))
    # Each spectrum is ready two points late.
    mixed = [one for pair in zip(cheap[2:], full, strict=False) for one in pair]
    (found,) = only([*cheap[:2], *mixed], "TW706")
    assert (found.step, found.layers) == (200, (ONE,))


def test_the_two_tempos_share_one_alarm():
    alarms = Alarms()
    points = sick({ONE: {"stable_rank": 4.0}})
    both = [alarm for one in points for tempo in ("cheap", "full") for alarm in alarms.see(replace(one, tempo=tempo))]
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


# What is healthy, and was called ill


def adapted(rank=16, power=1.0):
    """Points of a healthy LoRA run: B and the change start at zero, and grow as (a power of) the steps; W stays."""

    def layers(step):
        grown = (max(step, 0) / 100) ** power
        still = {"spectral_norm": 3.0, "frobenius": 9.0, "update_ratio": 0.0, "alpha_hill": 3.0, "alpha": 2.5}
        first = {**still, "update_ratio": 1e-3, "alpha_hill": 5 - 0.01 * step}
        second = {"spectral_norm": grown, "frobenius": 1.2 * grown, "alpha_hill": 9 - 0.02 * step}
        second |= {"stable_rank": 1.4, "alpha": 1.3, "ks_distance": 0.05, "num_pl_spikes": 60.0} if step else {}
        second |= {"update_ratio": min(power / step, 1.0)} if step else {}
        found = {}
        for i in range(6):
            name = f"model.layers.{i}.q_proj"
            found |= {f"base_model.model.{name}.base_layer": still, name: second,
                      f"base_model.model.{name}.lora_A.default": first,
                      f"base_model.model.{name}.lora_B.default": second}  # fmt: skip
        return found

    return layers


def as_run(layers, count=30, every=10, first=0):
    return [Point("r", step, "full", float(step), layers(step), {"loss": loss(step)})
            for step in range(first, count * every, every)]  # fmt: skip


@pytest.mark.parametrize("first", [0, 10, 200])
@pytest.mark.parametrize("power", [1.0, 1.8], ids=["constant rate", "warm-up"])
def test_a_healthy_adapter_is_no_alarm(power, first):
    assert Alarms().replay(as_run(adapted(power=power), first=first)) == []


@pytest.mark.parametrize(("harm", "code"), [
    (lambda values, step: {"update_ratio": 30 / step}, "TW704"),
    (lambda values, step: dict.fromkeys(("spectral_norm", "frobenius"), 2.0 * 1.06 ** (step - 200)), "TW703"),
    (lambda values, step: {"frobenius": math.nan, "spectral_norm": math.nan}, "TW701"),
    (lambda values, step: {"update_ratio": 0.0}, "TW705"),
    (lambda values, step: {"frobenius": 0.0, "spectral_norm": 0.0}, "TW713"),
])  # fmt: skip
def test_an_adapter_that_is_ill_is_named(harm, code):
    healthy_layers = adapted()
    ill = "base_model.model.model.layers.3.q_proj.lora_B.default"

    def layers(step):
        found = healthy_layers(step)
        return found | ({ill: {**found[ill], **harm(found[ill], step)}} if step > 200 else {})

    found = [alarm for alarm in Alarms().replay(as_run(layers)) if alarm.rule == code]
    assert found
    assert found[0].layers == (ill,)
    assert 200 < found[0].step <= 240


def test_what_starts_at_zero_in_a_whole_model_may_grow():
    """The output of a branch that starts as nothing, as many recipes have it."""

    def layers(step):
        grown = step / 50
        zero = {"spectral_norm": grown, "frobenius": 1.5 * grown, "update_ratio": min(1 / max(step, 1), 1.0)}
        return {**{name: healthy(step, i, 0.01) for i, name in enumerate(LAYERS)}, "model.layers.0.mlp.down_proj": zero}

    assert Alarms().replay(as_run(layers)) == []


@pytest.mark.parametrize("every", [1, 10, 50, 200, 1000])
def test_growth_is_one_of_steps_and_not_of_points(every):
    """The same healthy run, whose norms grow as the root of its steps, at whatever distance it is looked at."""

    def layers(step):
        grown = 0.2 * (1 + step / 10) ** 0.5
        return {name: {**healthy(step, i, 0.0), "spectral_norm": grown, "frobenius": 3 * grown}
                for i, name in enumerate(LAYERS)}  # fmt: skip

    assert "TW703" not in {alarm.rule for alarm in Alarms().replay(as_run(layers, every=every))}


@pytest.mark.parametrize("name", ["lm_head", "model.embed_tokens", "transformer.wte", "classifier"])
def test_a_head_or_an_embedding_that_grows_is_named(name):
    layers = (*LAYERS[:5], name)

    def growing(step):
        by = 1.06 ** max(step - 200, 0)
        return {name: {"frobenius": 9.0 * by, "spectral_norm": 3.0 * by}}

    points = [point(step, growing(step), layers=layers) for step in range(0, 300, 10)]
    found = [alarm for alarm in Alarms().replay(points) if alarm.rule == "TW703"]
    assert found[0].layers == (name,)
    assert found[0].step <= 230


def test_an_adapter_that_goes_to_and_fro_is_no_alarm():
    """Under SGD near its end ‖B‖ is as the root of its age, and a step moves it by one part in that."""
    made = adapted()

    def layers(step):
        found = made(step)
        second = [name for name, values in found.items() if step > 0 and values.get("stable_rank") == 1.4]
        return found | {name: {**found[name], "update_ratio": 0.9 / math.sqrt(step)} for name in second}

    assert "TW704" not in {alarm.rule for alarm in Alarms().replay(as_run(layers))}


def test_a_layer_that_loses_its_weights_is_named():
    (found,) = only(sick({ONE: {"frobenius": 0.4, "spectral_norm": 0.2}}), "TW713")
    assert (found.layers, found.severity, found.step, found.since) == ((ONE,), "error", 200, 200)


@pytest.mark.parametrize("seed", range(20))
def test_a_held_out_loss_that_scatters_is_not_over_fitting(seed):
    draw = random.Random(seed)
    flat = [
        point(step, scalars={"eval_loss": 2.0 * (1 + draw.gauss(0, 0.03)), "loss": 1.9}) for step in range(0, 600, 10)
    ]
    falling = [
        replace(one, scalars={"loss": 1.9, "eval_loss": (1 + math.exp(-one.step / 300)) * (1 + draw.gauss(0, 0.03))})
        for one in flat
    ]
    assert codes(flat) == set()
    assert codes(falling) == set()


def test_one_batch_next_to_zero_is_no_spike_and_five_in_a_row_are():
    alarms = Alarms()
    draw = random.Random(0)
    losses = [2.3 * math.exp(-step / 20) + 0.004 * draw.random() for step in range(300)]
    losses[250] = 0.2
    assert alarms.see_losses("r", range(1, 301), losses) == []
    (found,) = alarms.see_losses("r", range(301, 311), [0.9 + 0.1 * draw.random() for _ in range(10)])
    assert (found.rule, found.since) == ("TW702", 301)
    assert 301 <= found.step <= 305


def test_a_loss_that_rises_for_good_is_seen_while_the_run_still_learns():
    draw = random.Random(1)
    losses = [2.0 - 0.002 * step + draw.gauss(0, 0.02) for step in range(200)] + [2.3] * 10
    (found,) = Alarms().see_losses("r", range(1, 211), losses)
    assert (found.rule, found.since) == ("TW702", 201)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_losses_that_are_not_finite_are_one_alarm_of_the_step_of_the_first(bad):
    found = Alarms().see_losses("r", range(1, 101), [1.0] * 60 + [bad] * 40)
    assert [(alarm.rule, alarm.step, alarm.severity) for alarm in found] == [("TW701", 61, "error")]


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


def test_memorising_is_seen_where_the_held_out_loss_stands_still():
    def both(step):
        return {"loss": 2.0 - 0.005 * step, "eval_loss": 2.0 - 0.005 * min(step, 60)}

    (found,) = only([point(step, scalars=both(step)) for step in range(0, 300, 10)], "TW711")
    assert "does not fall any more" in found.title


def test_a_classifier_that_has_learned_does_not_memorise():
    def both(step):
        return {"loss": 2.3 * math.exp(-step / 30), "eval_loss": 0.1 + 2.2 * math.exp(-step / 30)}

    assert codes([point(step, scalars=both(step)) for step in range(0, 300, 10)]) == set()
