"""One line on the health of a model: a word, why, the worst layers, and what to do next."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import replace

from tailwise.audits.audit import Audit
from tailwise.audits.of_adapter import adapter_mode
from tailwise.judging.diagnosis.atlas import TOLD, Atlas, Standing, default, depths
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis, Finding, Health, WorstLayer
from tailwise.judging.diagnosis.wording import count, verb

#: Layers that are named.
MOST = 5
#: Layers of the first finding that the line on a model's health names, at most.
_NAMED = 2
#: Share of the judged matrices from which on warnings are of the whole model.
_WHOLE = 0.5
#: Share of the parameters that must have been judged before nothing found means anything.
_JUDGED = 0.5


def health_of(audit: Audit, diagnosis: Diagnosis, others: Atlas | None = None) -> Health:
    """The verdict on an audited model. `others`: healthy models, this one not among them."""
    found = _health(audit, diagnosis, others)
    named = {name for item in diagnosis.findings if not item.noted for name in item.layers}
    found = replace(found, named=len(named))
    return _of_change_alone(audit, found, diagnosis) if adapter_mode(audit) == "delta" else found


def _of_change_alone(audit: Audit, found: Health, diagnosis: Diagnosis) -> Health:
    """Of an adapter's change: rules judge whole models, so that only what is not finite is a verdict on the model."""
    command = f"tailwise audit {shlex.quote(audit.model)} --adapter merged"
    said = f"this is the adapter's change alone; `{command}` measures the model with it."
    if any(item.code == "TW601" and not item.noted for item in diagnosis.findings):
        return replace(found, why=f"{found.why} {said[0].upper()}{said[1:]}", next=command)
    return replace(found, word="no verdict", why=f"{said} Of the change: {found.why}", next=command)


def _health(audit: Audit, diagnosis: Diagnosis, others: Atlas | None) -> Health:
    judged, whole = _judged(audit, diagnosis)
    worst = tuple(_placed(audit, item, others) for item in worst_layers(diagnosis))
    bad = [item for item in diagnosis.findings if not item.noted]
    named = {name for item in bad for name in item.layers}
    if not len(audit):
        broken = bool(bad)
        why = f"{bad[0].title}." if broken else "no matrix was measured."
        return Health("unhealthy" if broken else "no verdict", why, worst, _next(audit, diagnosis))
    errors = [item for item in bad if item.severity == "error"]
    if errors or (bad and len(named) > _WHOLE * max(judged, 1)):
        return Health("unhealthy", _why(errors or bad, len(bad)), worst, _next(audit, diagnosis))
    if bad:
        return Health("needs a look", _why(bad, len(bad)), worst, _next(audit, diagnosis))
    if whole < _JUDGED:
        least = diagnosis.thresholds.get("min_evals", 50)
        why = f"{judged} of {count(len(audit), 'matrix')} have the {least:.0f} eigenvalues that rules ask for."
        return Health("no verdict", why, worst, _next(audit, diagnosis))
    notes = len(diagnosis.findings)
    beside = f"; {count(notes, 'observation')} {verb(notes, 'is', 'are')} only noted" if notes else ""
    looked = f"{count(len(diagnosis.looked), 'rule')} looked at {count(len(audit), 'matrix')}"
    why = f"{looked} and found nothing wrong{beside}."
    return Health("healthy", why, worst, _next(audit, diagnosis))


def _judged(audit: Audit, diagnosis: Diagnosis) -> tuple[int, float]:
    """Matrices with enough eigenvalues, and their share of all weights that were found (measured or packed)."""
    least = diagnosis.thresholds.get("min_evals", 50)
    large = [row for row in audit.rows if row.measured and min(row.rows, row.cols) * row.slices >= least]
    every = sum(row.n_params for row in audit.rows if row.measured or row.status == "UNSUPPORTED")
    return len(large), sum(row.n_params for row in large) / every if every else 0.0


def _why(bad: Sequence[Finding], in_all: int) -> str:
    first, more = bad[0], in_all - 1
    names = f" ({', '.join(first.layers)})" if 0 < len(first.layers) <= _NAMED else ""
    beside = f", and {count(more, 'other finding')}" if more else ""
    return f"{first.title}{names}{beside}."


def worst_layers(diagnosis: Diagnosis, most: int = MOST) -> tuple[WorstLayer, ...]:
    """The layers that warnings and errors name: the worst severity first, then the number of findings."""
    named: dict[str, list[Finding]] = {}
    for item in diagnosis.findings:
        for name in () if item.noted else item.layers:
            named.setdefault(name, []).append(item)
    place = {name: index for index, name in enumerate(named)}  # findings have their worst layer first

    def order(name: str) -> tuple[float, ...]:
        counts = [-sum(item.severity == severity for item in named[name]) for severity in reversed(SEVERITIES)]
        return (*counts, place[name])

    return tuple(_worst(name, named[name]) for name in sorted(named, key=order)[:most])


def _placed(audit: Audit, item: WorstLayer, others: Atlas | None) -> WorstLayer:
    """The layer with its place among healthy models: by the metric in which it is farthest from their middle."""
    if others is None or item.layer not in audit:
        return item
    row = audit[item.layer].row
    told = [standing for metric in TOLD if (standing := others.standing(row, metric)) is not None]
    farthest = max(told, key=lambda found: abs(found.below - 0.5), default=None)
    return item if farthest is None else replace(item, stands=str(farthest))


def _worst(name: str, findings: Sequence[Finding]) -> WorstLayer:
    first = max(findings, key=lambda item: SEVERITIES.index(item.severity))
    says = next((item.says for item in first.evidence if item.layer == name), "")
    pattern = first.pattern or first.title
    reason = f"{pattern}: {_first_clause(says)}" if says else pattern
    return WorstLayer(name, first.code, first.severity, reason, len(findings) - 1)


def _first_clause(says: str) -> str:
    """The number that a finding stands on, with what it is held against: the evidence has the rest."""
    match = re.match(r"[^;()]*(\([^()]*\))?", says)
    return (match[0] if match else says).strip(" ,")


def _next(audit: Audit, diagnosis: Diagnosis) -> str:
    codes = {item.code for item in diagnosis.findings if not item.noted}
    if not len(audit):
        return "tailwise audit MODEL --dry-run"
    if "TW201" in codes and not any("moved" in item.message or "base" in item.message for item in diagnosis.findings):
        return "tailwise diagnose AUDIT --base BASE.audit"
    if codes:
        return "tailwise diagnose AUDIT"
    return "tailwise report AUDIT"


def standings(audit: Audit, layer: str, atlas: Atlas | None = None) -> tuple[Standing, ...]:
    """Where a layer stands among healthy models, by the metrics that an atlas tells it by; its own model left out."""
    row = audit[layer].row
    others = (default() if atlas is None else atlas).without(audit)
    depth = depths(audit.rows)[row.name]
    told = (others.standing(row, metric, depth) for metric in TOLD)
    return tuple(item for item in told if item is not None)
