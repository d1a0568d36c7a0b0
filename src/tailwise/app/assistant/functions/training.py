"""A training run over time."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.workspace import links
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.history.store import History  # it takes SQLAlchemy, which questions about audits do without

_TOLD = ("alpha", "alpha_hill", "stable_rank", "log_spectral_norm", "singular_entropy", "num_traps")
_MOST = 12
_MOST_LAYERS = 8


@function(run="name of a run, from `list`; the one on screen where it is left out")
def training(place: Place, run: str = "") -> Fact:
    """A training run: its steps, its alarms, and how loss and spectral means moved from the first step to the last."""
    from tailwise.app.arriving import arriving  # of the history, which takes SQLAlchemy

    history = place.workspace.history
    name = run or place.screen.run or ""
    runs = {item.name: item for item in history.runs()}
    if not name and len(runs) != 1:
        shown = ", ".join(list(runs)[:12])
        raise UsageError("which run?", fix=f"name one of {shown}" if shown else "the store is empty")
    name = name or next(iter(runs))
    metrics = set(history.metrics(name))
    alarms = history.kept_alarms(name)
    summary = runs[name].to_json()
    return {
        "run": name,
        "state": arriving(runs[name]),
        **{key: summary[key] for key in ("points", "audits", "first_step", "last_step")},
        "alarms": [_alarm(place, alarm) for alarm in alarms[-_MOST:][::-1]],
        "alarms_in_all": len(alarms),
        **({} if alarms else {"no_alarm": history.no_alarm(name)}),
        "means": {metric: moved for metric in _TOLD if metric in metrics and (moved := _means(history, name, metric))},
        "scalars": _scalars(history, name),
        "links": [place.link(name, links.run(name))],
    }


def _alarm(place: Place, kept: Any) -> Fact:
    alarm = kept.alarm
    return {"code": alarm.rule, "severity": alarm.severity, "title": alarm.title, "step": alarm.step,
            "since": alarm.since, "last_step": kept.last_step, "times": kept.times,
            "layers": list(alarm.layers[:_MOST_LAYERS]), "layers_in_all": len(alarm.layers),
            "evidence": dict(alarm.evidence), "in_code": [f"tailwise.remedies.{one}" for one in alarm.remedies],
            "links": [place.link(alarm.rule, links.explain(alarm.rule))]}  # fmt: skip


def _means(history: History, run: str, metric: str) -> Fact:
    """Mean over the layers that have the metric at the first and at the last step that has it, of trusted fits."""
    from tailwise.history.doubted import trusted_alone

    whole, lost, fits = trusted_alone(history, run, history.series(run, [metric]))
    table = whole.drop_null()
    if not len(table):
        return {}
    steps = table["step"].to_pylist()
    ends = {"first": min(steps), "last": max(steps)}
    values = table[metric].to_pylist()
    means: Fact = {"fits_left_out": lost, "fits": fits} if lost else {}
    for end, step in ends.items():
        here = [value for at, value in zip(steps, values, strict=True) if at == step and value is not None]
        means |= {f"{end}_step": step, end: sum(here) / len(here), f"{end}_layers": len(here)}
    return means


def _scalars(history: History, run: str) -> Fact:
    table = history.scalars(run)
    steps = table["step"].to_pylist()
    scalars: Fact = {}
    for name in [name for name in ("loss", "eval_loss", "lr") if name in table.column_names]:
        pairs = [(at, value) for at, value in zip(steps, table[name].to_pylist(), strict=True) if value is not None]
        if pairs:
            scalars[name] = {"first_step": pairs[0][0], "first": pairs[0][1], "last_step": pairs[-1][0],
                             "last": pairs[-1][1], "lowest": min(value for _, value in pairs)}  # fmt: skip
    return scalars
