"""A gate's outcome for people: a pull-request comment, a section of a model card, and a badge."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape
from statistics import median

from tailwise.audits.audit import Audit
from tailwise.audits.trusted import usable_values
from tailwise.core.harmless import as_code, in_markdown, one_line
from tailwise.judging.compare.summary import SUMMARIES, model_numbers
from tailwise.judging.gates.expectation import CheckResult, ExpectationOutcome

_MARKS = {"passed": "✅", "failed": "❌", "not_evaluated": "⚠️"}
_MOST = 10
#: Found by later runs that want to edit their comment instead of adding one.
COMMENT_MARK = "<!-- tailwise check -->"
_CARD_BEGINS, _CARD_ENDS = "<!-- tailwise begins -->", "<!-- tailwise ends -->"


def to_markdown(result: CheckResult) -> str:
    """A comment for a pull request: the verdict, the expectations, and what fails."""
    mark = _MARKS["passed" if result.passed else "failed"]
    parts = [
        COMMENT_MARK,
        f"### {mark} tailwise: {result.verdict}",
        f"{as_code(result.model)} against {as_code(result.source)}",
    ]
    if result.baselines:
        parts[-1] += f", baseline {', '.join(as_code(base) for base in result.baselines)}"
    parts += [in_markdown(note) for note in result.notes]
    lines = ["| | expectation | outcome |", "| --- | --- | --- |"]
    lines += [f"| {_MARKS[o.status]} | {_cell(o.title)} | {_cell(o.message)} |" for o in result.outcomes]
    parts.append("\n".join(lines))
    parts += [detail for outcome in result.outcomes for detail in _details(outcome)]
    return "\n\n".join(parts) + "\n"


def _said_below(outcome: ExpectationOutcome) -> list[str]:
    """Messages of the violations that say more than the outcome's own."""
    if outcome.passed:
        return []
    return [violation.message for violation in outcome.violations if violation.message != outcome.message]


def _details(outcome: ExpectationOutcome) -> Iterator[str]:
    messages = _said_below(outcome)
    if not messages:
        return
    shown = [f"- {_cell(message)}" for message in messages[:_MOST]]
    left = len(messages) - len(shown)
    shown += [f"- … and {left} more"] if left else []
    yield (
        f"<details><summary>{escape(outcome.id)}: {escape(one_line(outcome.title))}</summary>\n\n"
        + "\n".join(shown)
        + "\n\n</details>"
    )


def _cell(text: str) -> str:
    return in_markdown(text)


def to_model_card(result: CheckResult, audit: Audit) -> str:
    """A section for a model card, between marks so that a later run can replace it."""
    numbers = {name: value for name, value in model_numbers(audit).items() if value is not None}
    provenance = audit.provenance
    recipe = provenance.recipe
    estimator, hill = (as_code(str(recipe.get(name))) for name in ("estimator", "hill_estimator"))
    content = as_code(f"sha256:{provenance.fingerprint[:16]}…")
    parts = [
        _CARD_BEGINS,
        "## Spectral audit",
        f"{len(audit)} weight matrices, measured by tailwise "
        f"{in_markdown(str(provenance.versions.get('tailwise', '')))} (alpha by {estimator}, alpha_hill by {hill}, "
        f"the largest {float(recipe.get('k_frac', 0.1)):.0%}). "
        "These numbers describe the spectra of the weights. They are no measure of quality by themselves.",
        "\n".join(
            ["| number | value |", "| --- | ---: |", *(f"| {SUMMARIES[n]} | {v:.4g} |" for n, v in numbers.items())]
        ),
        "\n".join(
            ["| role | matrices | median alpha | median alpha_hill |", "| --- | ---: | ---: | ---: |", *_roles(audit)]
        ),
        f"Gate: {result.verdict}." if result.outcomes else "",
        *(in_markdown(note) for note in result.notes),
        f"Content of the weights: {content}, audited {in_markdown(provenance.started[:10])}.",
        _CARD_ENDS,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _roles(audit: Audit) -> Iterator[str]:
    rows = [layer.row for layer in audit]
    for role in dict.fromkeys(row.role for row in rows):
        group = [row for row in rows if row.role == role]
        cells = []
        for metric in ("alpha", "alpha_hill"):
            values = usable_values(audit, metric, group)
            cells.append(f"{median(values):.2f}" if values else "–")
        yield f"| {in_markdown(role)} | {len(group)} | {' | '.join(cells)} |"


def to_badge(result: CheckResult) -> str:
    """A small SVG: how many expectations hold."""
    held = sum(outcome.passed for outcome in result.outcomes)
    left, right = "tailwise", f"{held}/{len(result.outcomes)} hold"
    colour = "#2e7d32" if result.passed else "#c62828"
    # Verdana 11 px is about 6.6 px a character; textLength makes every font fit.
    widths = [round(6.6 * len(text)) + 12 for text in (left, right)]
    total = sum(widths)
    texts = "".join(
        f'<text x="{x}" y="14" textLength="{width - 12}" lengthAdjust="spacingAndGlyphs">{escape(text)}</text>'
        for x, width, text in ((widths[0] / 2, widths[0], left), (widths[0] + widths[1] / 2, widths[1], right))
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{total}" height="20" role="img" aria-label="{left}: {right}">'
        f"<title>{left}: {right}</title>"
        f'<clipPath id="r"><rect width="{total}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><rect width="{widths[0]}" height="20" fill="#444"/>'
        f'<rect x="{widths[0]}" width="{widths[1]}" height="20" fill="{colour}"/></g>'
        f'<g fill="#fff" text-anchor="middle" font-family="Verdana,DejaVu Sans,sans-serif" font-size="11">{texts}</g>'
        "</svg>\n"
    )


def to_text(result: CheckResult) -> str:
    """For the terminal."""
    lines = [f"{result.model} against {result.source}"]
    words = {"passed": "ok", "failed": "FAIL", "not_evaluated": "????"}
    for outcome in result.outcomes:
        lines.append(f"{words[outcome.status]:<4}  {outcome.title}: {outcome.message}")
        messages = _said_below(outcome)
        lines += [f"      {message}" for message in messages[:_MOST]]
        lines += [f"      … and {len(messages) - _MOST} more; --json has all"] if len(messages) > _MOST else []
    notes = [f"note: {note}" for note in result.notes]
    return "\n".join(one_line(line) for line in (*lines, *notes, result.verdict))
