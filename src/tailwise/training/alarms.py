"""`Alarms`: the points of a run, one by one, to alarms."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from tailwise.core.errors import unknown_name
from tailwise.core.validation import check
from tailwise.history.point import Alarm, Cadence, Point, Severity
from tailwise.judging.thresholds import Overrides, resolved
from tailwise.training.alarm_change import began
from tailwise.training.alarm_rule import ALARM_RULES, AlarmRule, Sign, Signs
from tailwise.training.alarm_watch import BESIDE, BESIDE_SCALARS, AlarmWatch, with_norms

Sink = Callable[[Alarm], object]
_LOG = logging.getLogger("tailwise.alarms")
_NAMED = 3
#: By what a sign is shown: points of a cadence, or the losses between them.
Shown = Cadence | Literal["loss"]


@dataclass
class _State:
    """What is known of one run."""

    watch: AlarmWatch
    # (code, layer) in alarm → the cadence of the points that show it, and how many have not since the last that did
    active: dict[tuple[str, str], tuple[Shown, int]] = field(default_factory=dict)

    def fresh(self, code: str, signs: Signs, cadence: Shown, clear_after: int) -> dict[str, Sign]:
        """The signs that are not in alarm yet; those that have gone for long enough are cleared."""
        new = {layer: sign for layer, sign in signs.items() if (code, layer) not in self.active}
        for key in [key for key, (shown, _) in self.active.items() if key[0] == code and shown == cadence]:
            quiet = 0 if key[1] in signs else self.active[key][1] + 1
            self.active[key] = cadence, quiet
            if quiet >= clear_after:
                del self.active[key]
        self.active |= {(code, layer): (cadence, 0) for layer in new}
        return new


class Alarms:
    """Rules over the points of training runs. An instance is a `Callable[[Point], list[Alarm]]`.

    Parameters
    ----------
    rules
        Codes of the rules to ask; all without it.
    mute
        Codes that are not asked.
    thresholds
        Other values of thresholds: a mapping, or the path of a TOML file with `name = value` lines, which may
        serve `diagnose` too.
    on_alarm
        Called with each alarm: a function, `Log()`, `Webhook(url)`, or several of them. What they raise is logged,
        and goes no further.
    stop_on
        Codes and severities (that one and worse) that set `should_stop`, which a training loop may ask.

    A layer in alarm raises no second alarm of that rule until it has been without its sign for `clear_after` points.
    Memory and time of a point do not grow with the length of the run.

    >>> from tailwise.runs import Alarms, Point
    >>> losses = [Point("run", step, "full", 0.0, layers={}, scalars={"loss": float("nan")}) for step in range(2)]
    >>> [alarm.rule for alarm in Alarms().replay(losses)]
    ['TW701']
    """

    def __init__(
        self, rules: Sequence[str] | str | None = None, *, mute: Sequence[str] | str = (), thresholds: Overrides = None,
        on_alarm: Sink | Sequence[Sink] = (), stop_on: Sequence[str] | str = (),
    ) -> None:  # fmt: skip
        check("rules", rules, Sequence[str] | str | None)
        check("mute", mute, Sequence[str] | str)
        check("stop_on", stop_on, Sequence[str] | str)
        check("on_alarm", on_alarm, Callable[..., object] | Sequence[Callable[..., object]])
        muted = {_known(code) for code in _listed(mute)}
        wanted = [_known(code) for code in _listed(rules)] if rules is not None else list(ALARM_RULES)
        self.rules: tuple[AlarmRule, ...] = tuple(ALARM_RULES[code] for code in wanted if code not in muted)
        self.limits = resolved(thresholds, ALARM_RULES)
        self.should_stop = False
        self._sinks: tuple[Sink, ...] = (on_alarm,) if callable(on_alarm) else tuple(on_alarm)
        self._stop_on = _stopping(stop_on)
        self._runs: dict[str, _State] = {}

    def __repr__(self) -> str:
        return f"Alarms({len(self.rules)} rules)"

    def see(self, point: Point) -> list[Alarm]:
        """Take the next point, tell the sinks, and return the alarms that it raises, worst first."""
        return self._told(self._judge(point))

    __call__ = see

    def see_losses(self, run: str, steps: Sequence[int], losses: Sequence[float]) -> list[Alarm]:
        """Take the losses of steps, one each and in order, and return the alarms that they raise.

        Each alarm has the step at which it happened. A monitor gives every loss that it is told of.
        """
        return self._told([alarm for step, loss in zip(steps, losses, strict=True)
                           for alarm in self._judge_loss(run, step, loss)])  # fmt: skip

    def _told(self, alarms: list[Alarm]) -> list[Alarm]:
        for alarm in alarms:
            self.should_stop |= alarm.rule in self._stop_on or alarm.severity in self._stop_on
            for sink in self._sinks:
                try:
                    sink(alarm)
                except Exception:
                    _LOG.exception("a sink of alarms failed; training goes on")
        return alarms

    def replay(self, points: Iterable[Point]) -> list[Alarm]:
        """The alarms of a stored history, in one call. No sink is told and nothing stops.

        A run that resumes gives its stored points here first, so that it goes on as if it had not been broken off.
        """
        return [alarm for point in points for alarm in self._judge(point)]

    def active(self, run: str) -> list[tuple[str, str]]:
        """(code, layer) of what is in alarm in a run now; the layer is "" for the whole model."""
        return sorted(self._runs[run].active) if run in self._runs else []

    def _state(self, run: str) -> _State:
        if run not in self._runs:
            metrics = BESIDE.union(*(rule.needs for rule in self.rules))
            scalars = BESIDE_SCALARS.union(*(rule.scalars for rule in self.rules))
            self._runs[run] = _State(AlarmWatch(metrics, scalars, self.limits))
        return self._runs[run]

    def _judge_loss(self, run: str, step: int, loss: float) -> list[Alarm]:
        state, alarms = self._state(run), []
        state.watch.losses.add(step, loss)
        for rule in self.rules:
            if rule.each_loss is not None:
                signs = rule.each_loss(state.watch)
                fresh = state.fresh(rule.code, signs, "loss", int(self.limits["clear_after_losses"]))
                if fresh:
                    sign = fresh[""]
                    since = int(sign.evidence.get("since", step))
                    evidence = {name: value for name, value in sign.evidence.items() if name != "since"}
                    title = f"{rule.title}: {sign.says}"
                    alarms.append(Alarm(run, step, time.time(), rule.code, sign.severity or rule.severity, title, (),
                                        evidence, since, rule.functions))  # fmt: skip
        return alarms

    def _judge(self, point: Point) -> list[Alarm]:
        state, point = self._state(point.run), with_norms(point)
        state.watch.take(point)
        alarms = []
        for rule in self.rules:
            if _can_look(rule, point):
                signs = rule.judge(state.watch)
                fresh = state.fresh(rule.code, signs, point.cadence, int(self.limits["clear_after"]))
                alarms += [_alarm(rule, point, fresh, state.watch)] if fresh else []
        order = get_args(Severity)
        return sorted(alarms, key=lambda alarm: -order.index(alarm.severity))


def _can_look(rule: AlarmRule, point: Point) -> bool:
    if any(name not in point.scalars for name in rule.scalars):
        return False
    return not rule.needs or any(all(name in values for name in rule.needs) for values in point.layers.values())


def _alarm(rule: AlarmRule, point: Point, signs: Signs, watch: AlarmWatch) -> Alarm:
    ordered = sorted(signs, key=lambda layer: -signs[layer].badness)
    worst, layers = signs[ordered[0]], tuple(layer for layer in ordered if layer)
    order = get_args(Severity)
    severity = max((sign.severity or rule.severity for sign in signs.values()), key=order.index)
    track = watch.track(ordered[0], worst.metric) if worst.metric else None
    since = began(track, worst.shape) if track is not None else point.step
    title = f"{rule.title}: {worst.says}" + (f" in {_named(layers)}" if layers else "")
    return Alarm(point.run, point.step, point.time, rule.code, severity, title, layers, dict(worst.evidence),
                 point.step if since is None else since, rule.functions)  # fmt: skip


def _named(layers: Sequence[str]) -> str:
    shown = ", ".join(layers[:_NAMED])
    return shown if len(layers) <= _NAMED else f"{shown} and {len(layers) - _NAMED} more"


def _known(code: str, others: Sequence[str] = ()) -> str:
    if code not in ALARM_RULES:
        raise unknown_name("alarm rule" + " or severity" * bool(others), code, [*ALARM_RULES, *others])
    return code


def _stopping(stop_on: Sequence[str] | str) -> frozenset[str]:
    """Codes and severities, each severity with the worse ones."""
    order: tuple[str, ...] = get_args(Severity)
    codes: set[str] = set()
    for item in _listed(stop_on):
        codes |= set(order[order.index(item) :]) if item in order else {_known(item, order)}
    return frozenset(codes)


def _listed(names: Sequence[str] | str) -> Sequence[str]:
    return (names,) if isinstance(names, str) else names
