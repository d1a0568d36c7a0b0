"""The parts of an HTML report that stand without JavaScript: header, findings, lists, definitions."""

from __future__ import annotations

import re
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape

from tailwise.audits.audit import Audit
from tailwise.audits.trusted import mean_alpha_words
from tailwise.core.recipe import Recipe
from tailwise.judging.diagnosis.finding import Diagnosis, Finding
from tailwise.judging.diagnosis.wording import count, verb
from tailwise.report.charts.chart import Chart, Guidance
from tailwise.report.findings_view import OTHER_SIGNS, not_evaluated
from tailwise.spectrum.metrics.metric import METRICS

#: Layers named in a finding before the rest is folded away.
_NAMED = 8
_FOLDED = 60
_LONG = 700  # characters of a message; its layers and numbers follow in any case
_LEVEL = {"error": "error", "warning": "warning", "info": "note"}

Link = Callable[[str], str]


def header(title: str, audits: Sequence[Audit], names: Sequence[str], verdict: str) -> str:
    """The verdict, then model, counts and recipe."""
    lead = '<p class="lead">A report on the spectra of the weight matrices, by tailwise.</p>'
    facts = [_facts(audit) for audit in audits]
    if len(audits) == 1:
        cells = (f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts[0].items())
        shown = f'<dl class="facts">{"".join(cells)}</dl>'
    else:
        head = "".join(f"<th>{escape(name)}</th>" for name in facts[0])
        body = "".join(
            "<tr>" + "".join(f"<td>{escape(text)}</td>" for text in line.values()) + "</tr>" for line in facts
        )
        shown = _table(head, body)
    notes = "".join(f'<p class="quiet">{escape(note)}</p>' for audit in audits for note in audit.provenance.notes)
    origins = "".join(f"<h4>{escape(name)}</h4>{_origin(audit)}" for name, audit in zip(names, audits, strict=True))
    about = fold("About this audit", shown + fold("Provenance", origins)) if len(audits) == 1 else shown + origins
    text = f"<h1>{escape(title)}</h1>{verdict or lead}{about}{notes}"
    return f'<header class="top" id="top">{text}</header>'


def _facts(audit: Audit) -> dict[str, str]:
    provenance = audit.provenance
    return {
        "model": audit.model,
        "format": provenance.format,
        "matrices measured": str(len(audit)),
        "not measured": str(len(audit.unmeasured)),
        "parameters measured": f"{sum(layer.row.n_params for layer in audit):,}",
        "mean α (all roles)": mean_alpha_words(audit),
        "recipe": _recipe(provenance.recipe),
        "measured on": provenance.started[:16].replace("T", " ") + " UTC",
        "took": f"{provenance.seconds:.1f} s, {provenance.device}, {provenance.workers} workers",
    }


def _origin(audit: Audit) -> str:
    provenance = audit.provenance
    origin = {
        "revision": provenance.revision or "",
        "fingerprint of all matrices": provenance.fingerprint,
        "versions": ", ".join(f"{name} {version}" for name, version in provenance.versions.items()),
        "selection": ", ".join(f"{name} {value}" for name, value in provenance.selection.items() if value),
        "the whole recipe": ", ".join(
            f"{name} {value}" for name, value in provenance.recipe.items() if value not in ([], ())
        ),
    }
    return listed(f"{escape(name)}: <code>{escape(text)}</code>" for name, text in origin.items() if text)


def _recipe(recipe: Mapping[str, object]) -> str:
    plain = Recipe().to_json()
    changed = {key: value for key, value in recipe.items() if value != plain.get(key) and key != "metrics"}
    return ", ".join([f"estimator {recipe.get('estimator', 'ks')}",
                      *(f"{key} {value}" for key, value in changed.items() if key != "estimator")])  # fmt: skip


def findings(diagnosis: Diagnosis, link: Link) -> str:
    """What the rules found, worst first, and which were not evaluated."""
    noted = [_finding(item, link) for item in diagnosis.findings if item.noted]
    body = "".join(_finding(item, link) for item in diagnosis.findings if not item.noted)
    if noted:
        said = f"{count(len(noted), 'observation')} that {verb(len(noted), 'is', 'are')} only noted"
        body += fold(said, "".join(noted))
    if not diagnosis.findings:
        none = f"None of the {len(diagnosis.looked)} rules that could look found anything."
        body = f'<div class="finding good"><p>{none}</p></div>'
    return body + _not_looked(diagnosis)


def _not_looked(diagnosis: Diagnosis) -> str:
    items = [f"<b>{escape(item.code)} {escape(item.title)}</b>: {_code(item.reason)}" for item in diagnosis.not_looked]
    muted = f'<p class="quiet">Muted: {escape(", ".join(diagnosis.muted))}.</p>' if diagnosis.muted else ""
    looked = f'<p class="quiet">{len(diagnosis.looked)} rules evaluated.</p>' if diagnosis.findings else ""
    blind = fold(f"{count(len(items), 'rule')} not evaluated, which is not the same as finding nothing", listed(items))
    left = [_code(line) for line in not_evaluated(diagnosis)]
    skipped = fold("Layers that a rule left out", listed(left)) if left else ""
    return looked + (blind if items else "") + skipped + muted


def _finding(item: Finding, link: Link) -> str:
    message = _code(textwrap.shorten(item.message, _LONG, placeholder=" …"))
    origin = f'<p class="quiet">How well the rule is founded: {escape(item.strength)}.</p>'
    return (
        f'<div class="finding {escape(item.severity)}"><h3><span class="tag">{escape(item.code)} · '
        f"{_LEVEL[item.severity]}</span>{escape(item.title)}</h3><p>{message}</p>{_named(item, link)}{_evidence(item)}"
        + _advice(item)
        + fold(
            "Possible causes, and where the rule comes from",
            _section("Causes", item.causes) + _section("Sources", item.references) + origin,
        )
        + "</div>"
    )


def _advice(item: Finding) -> str:
    """What to do; of what is only noted, folded away."""
    body = _section("What to do", item.remedies) + _section(
        "In code", tuple(f"tailwise.training.remedies.{name}" for name in item.functions)
    )
    return fold(OTHER_SIGNS, body) if item.noted else body


def _named(item: Finding, link: Link) -> str:
    """The layers of a finding, the first few at once."""
    if not item.layers:
        return ""
    rest, more = item.layers[_NAMED:], ""
    if rest:
        others = f" … and {len(rest) - _FOLDED} others, all in the table" if len(rest) > _FOLDED else ""
        more = fold(f"and {len(rest)} more", "".join(link(name) for name in rest[:_FOLDED]) + others)
    return f'<div class="layers">{"".join(link(name) for name in item.layers[:_NAMED])}{more}</div>'


def _evidence(item: Finding) -> str:
    lines = [
        (f'<span class="name">{escape(e.layer)}</span> ' if e.layer else "") + escape(e.says) for e in item.evidence
    ]
    if not lines:
        return ""
    more = f" … and {len(lines) - _FOLDED} more" if len(lines) > _FOLDED else ""
    return fold(f"Evidence: {len(lines)} number{'' if len(lines) == 1 else 's'}", listed(lines[:_FOLDED]) + more)


def _section(title: str, lines: Sequence[str]) -> str:
    return f"<h4>{escape(title)}</h4>{listed([_code(line) for line in lines])}" if lines else ""


def _code(text: str) -> str:
    """Text with `…` as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def listed(items: Iterable[str]) -> str:
    """A list of what is HTML already."""
    return "<ul>" + "".join(f"<li>{item}</li>" for item in items) + "</ul>"


def fold(title: str, body: str) -> str:
    """A part that opens on request."""
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def figure(chart: Chart, key: str, *, title: str, wide: bool, page: bool = False) -> str:
    """A chart's place, with title and guidance; JavaScript draws into it."""
    attribute = ' data-page="1"' if page else ""
    label = escape(f"{title}. {chart.summary} {chart.guidance.text}", quote=True)
    return (
        f'<article id="{escape(key)}"{" class=wide" if wide else ""}><h3>{escape(title)}</h3>'
        f"{_guidance(chart.guidance)}"
        f'<div class="chart" data-chart="{escape(key)}"{attribute} role="img" aria-label="{label}"></div></article>'
    )


def _guidance(guidance: Guidance) -> str:
    note = f" {escape(guidance.note)}" if guidance.note else ""
    return (
        f"<p>{escape(guidance.reading)}</p><p><b>Good:</b> {escape(guidance.good)} "
        f"<b>Bad:</b> {escape(guidance.bad)}{note}</p>"
    )


def left_out(charts: Mapping[str, str]) -> str:
    """The charts that could not be drawn: title → what is missing."""
    if not charts:
        return ""
    by_reason: dict[str, list[str]] = {}
    for title, reason in charts.items():
        by_reason.setdefault(reason, []).append(title)
    lines = (f"{escape(reason)}: {escape('; '.join(titles))}." for reason, titles in by_reason.items())
    return "".join(f'<p class="quiet">{line}</p>' for line in lines)


def unmeasured(audit: Audit) -> str:
    """What carries no numbers, by status, with the reason."""
    if not audit.unmeasured:
        return '<p class="quiet">Every tensor was measured.</p>'
    counts = Counter(row.status for row in audit.unmeasured)
    parts = []
    for status, number in counts.items():
        rows = [row for row in audit.unmeasured if row.status == status]
        reasons = Counter(row.reason for row in rows)
        same = f": {rows[0].reason}" if len(reasons) == 1 and rows[0].reason else ""
        lines = [f'<span class="name">{escape(row.name)}</span>' + ("" if same else f": {escape(row.reason)}")
                 for row in rows[:500]]  # fmt: skip
        more = [f"… and {number - 500} more"] if number > 500 else []
        parts.append(fold(f"{number} {status.lower().replace('_', ' ')}{same}", listed([*lines, *more])))
    return "".join(parts)


def definitions(names: Sequence[str]) -> str:
    """What each metric of the table is."""
    rows = [METRICS[name] for name in names if name in METRICS]
    body = "".join(
        f"<tr><td><code>{escape(item.name)}</code></td><td>{escape(item.summary)}</td>"
        f"<td>{escape(item.formula)}</td><td>{escape(item.source)}</td></tr>" for item in rows
    )  # fmt: skip
    head = "<th>metric</th><th>what it is</th><th>formula</th><th>source</th>"
    return _table(head, body)


def _table(head: str, body: str) -> str:
    rows = f"<thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
    return f'<div class="scroll" tabindex="0"><table class="words">{rows}</table></div>'
