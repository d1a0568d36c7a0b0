"""What can be explained: words, charts, metrics, rules and alarms, from the texts that stand beside their code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tailwise.app.assistant.glossary import TERMS
from tailwise.core.errors import unknown_name
from tailwise.judging.diagnosis.rule import RULES
from tailwise.judging.rules import Rule
from tailwise.report.charts.chart import CHARTS
from tailwise.spectrum.metrics.metric import METRICS
from tailwise.training.alarm_rule import ALARM_RULES


@dataclass(frozen=True)
class Topic:
    """One thing that is explained."""

    name: str
    kind: str  # term, chart, metric, rule, alarm
    title: str
    summary: str
    parts: tuple[tuple[str, tuple[str, ...]], ...] = field(default=())  # (heading, lines)


def topics() -> dict[str, Topic]:
    """Name → topic: rules and alarms by code, charts and metrics by name."""
    return {topic.name: topic for topic in (*_terms(), *_rules(), *_charts(), *_metrics())}


def topic(name: str) -> Topic:
    """The topic of that name. `UnknownNameError` otherwise."""
    known = topics()
    if name not in known:
        raise unknown_name("topic", name, known)
    return known[name]


def _parts(*pairs: tuple[str, tuple[str, ...] | str]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    listed = ((heading, (lines,) if isinstance(lines, str) else tuple(lines)) for heading, lines in pairs)
    return tuple((heading, lines) for heading, lines in listed if any(lines))


def _terms() -> list[Topic]:
    return [
        Topic(name, "term", term.name, term.meaning, _parts(("Source", term.source))) for name, term in TERMS.items()
    ]


def _rules() -> list[Topic]:
    rules = [_judgement("rule", rule) for _, rule in RULES.items()]
    return [*rules, *(_judgement("alarm", rule) for _, rule in ALARM_RULES.items())]


def _judgement(kind: str, rule: Rule[Any, Any]) -> Topic:
    return Topic(
        rule.code,
        kind,
        rule.title,
        rule.summary,
        _parts(
            ("Causes", rule.causes),
            ("What to do", rule.remedies),
            ("In code", tuple(f"`tailwise.remedies.{name}`" for name in rule.functions)),
            ("Thresholds", tuple(f"`{t.name}` {t.value:g} {t.unit}: {t.reason}" for t in rule.thresholds)),
            ("Needs", ", ".join(rule.asks_for)),
            ("How well it is founded", rule.strength),
            ("Sources", rule.references),
        ),
    )


def _charts() -> list[Topic]:
    return [
        Topic(name, "chart", chart.title, chart.summary, _parts(
            ("How to read it", chart.guidance.reading), ("Good", chart.guidance.good), ("Bad", chart.guidance.bad),
            ("Its limits", chart.guidance.note), ("Needs", ", ".join(chart.needs)),
        ))
        for name, chart in CHARTS.items()
    ]  # fmt: skip


def _metrics() -> list[Topic]:
    return [
        Topic(name, "metric", name, metric.summary, _parts(
            ("Formula", metric.formula), ("Unit", metric.unit), ("Source", metric.source),
        ))
        for name, metric in METRICS.items()
    ]  # fmt: skip
