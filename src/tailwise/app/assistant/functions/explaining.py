"""What a metric, a rule, an alarm, a chart or a word is."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.function import Place, function
from tailwise.app.assistant.glossary import ALIASES, TERMS
from tailwise.app.workspace import links
from tailwise.core.errors import UsageError
from tailwise.judging.diagnosis.rule import RULES
from tailwise.judging.rules import Rule
from tailwise.spectrum.metrics.metric import METRICS
from tailwise.training.alarm_rule import ALARM_RULES


@function(topic="name of a metric, a chart or a term, or the code of a rule or alarm such as TW101")
def explain(place: Place, topic: str) -> Fact:
    """What a metric (formula, source), rule or alarm (sign, causes, remedies), chart (how to read it) or term means."""
    name = named(topic)
    if name is None:
        near = difflib.get_close_matches(topic, topics(), n=3, cutoff=0.5)
        fix = f"did you mean {' or '.join(near)}?" if near else "ask for a metric, a chart or a code"
        raise UsageError(f"there is nothing named {topic[:60]!r} to explain", fix=fix)
    return {"topic": name, **_described(name), "links": [place.link(name, links.explain(name))]}


def named(words: str) -> str | None:
    """The name of what words call, or None."""
    asked = words.strip().strip("`'\"?.!").strip()
    folded = {name.lower(): name for name in topics()}
    for form in (asked.lower(), asked.lower().replace(" ", "_"), asked.lower().replace("-", "_")):
        if form in folded:
            return folded[form]
        if form in ALIASES:
            return ALIASES[form]
    return None


def topics() -> list[str]:
    """All names that can be explained."""
    return [*METRICS, *RULES, *ALARM_RULES, *charts(), *TERMS]


def charts() -> Mapping[str, Any]:
    """The charts by name; none where what draws them is not installed."""
    from tailwise.report.charts.chart import CHARTS

    try:
        return dict(CHARTS.items())
    except UsageError:
        return {}


def _described(name: str) -> Fact:
    if name in METRICS:
        metric = METRICS[name]
        limits = {"bands": TERMS["bands"].meaning} if name == "alpha" else {}
        return {"kind": "metric", "summary": metric.summary, "formula": metric.formula, "unit": metric.unit,
                "source": metric.source, **limits}  # fmt: skip
    if name in RULES:
        return _rule("rule", RULES[name])
    if name in ALARM_RULES:
        return _rule("alarm", ALARM_RULES[name])
    if name in TERMS:
        return {"kind": "term", "summary": TERMS[name].meaning, "source": TERMS[name].source}
    chart = charts()[name]
    return {"kind": "chart", "title": chart.title, "drawn_of": chart.scope, "needs": list(chart.needs),
            "reading": chart.guidance.reading, "good": chart.guidance.good, "bad": chart.guidance.bad,
            "note": chart.guidance.note}  # fmt: skip


def _rule(kind: str, rule: Rule[Any, Any]) -> Fact:
    return {"kind": kind, "title": rule.title, "summary": rule.summary, "severity": rule.severity,
            "strength_of_rule": rule.strength, "needs": list(rule.needs), "causes": list(rule.causes),
            "remedies": list(rule.remedies), "in_code": [f"tailwise.remedies.{name}" for name in rule.functions],
            "references": list(rule.references), "thresholds": [
                {"name": item.name, "value": item.value, "unit": item.unit, "reason": item.reason}
                for item in rule.thresholds]}  # fmt: skip


def codes_in(text: str) -> list[str]:
    """Codes of rules and alarms that a text names and that there are."""
    codes = [code.upper() for code in re.findall(r"\b[A-Za-z]{2,20}\d{3}\b", text)]
    return [code for code in dict.fromkeys(codes) if code in RULES or code in ALARM_RULES]
