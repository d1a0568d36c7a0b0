"""Addresses of everything that can be pointed at: one scheme for the pages, the assistant and the guides."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, urlencode


def models() -> str:
    """All audits."""
    return "/models"


def model(audit: str) -> str:
    """One audit."""
    return f"/models/{quote(audit, safe='')}"


def layers(audit: str, **query: str) -> str:
    """The table of its layers, with its filter."""
    return f"{model(audit)}/layers" + (f"?{urlencode(query)}" if query else "")


def layer(audit: str, name: str) -> str:
    """One matrix. Names may hold anything, slashes too."""
    return f"{model(audit)}/layer?{urlencode({'name': name})}"


def chart(audit: str, name: str, metric: str | None = None) -> str:
    """One chart of an audit on a page of its own."""
    return f"{model(audit)}/charts/{quote(name, safe='')}" + (f"?{urlencode({'metric': metric})}" if metric else "")


def compare(audits: Sequence[str]) -> str:
    """Audits side by side."""
    return "/compare" + (f"?{urlencode([('model', one) for one in audits])}" if audits else "")


def against_base(audit: str, base: str) -> str:
    """An audit and what it came from."""
    return f"/base?{urlencode({'model': audit, 'base': base})}"


def training() -> str:
    """All runs."""
    return "/training"


def run(name: str) -> str:
    """One run."""
    return f"/training/run?{urlencode({'name': name})}"


def plans() -> str:
    """All plans."""
    return "/plans"


def plan(name: str) -> str:
    """One plan."""
    return f"/plans/{quote(name, safe='')}"


def file(name: str) -> str:
    """A comparison or a precision study that lies in a folder."""
    return f"/files/{quote(name, safe='')}"


def evaluations() -> str:
    """Evaluations side by side."""
    return "/evaluations"


def evaluation_chart(text: int, measure: str, size: str) -> str:
    """One chart of the evaluations on one text."""
    return f"{evaluations()}/chart?{urlencode({'text': text, 'measure': measure, 'size': size})}"


def explain(topic: str) -> str:
    """What a metric, a chart, a rule or an alarm is."""
    return f"/help/{quote(topic, safe='')}"
