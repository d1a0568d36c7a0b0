"""A diagnosis in the terminal and in files: findings worst first, then what could not be looked at."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.table import Table as RichTable
from rich.text import Text

from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError
from tailwise.judging.diagnosis.finding import SEVERITIES, Diagnosis, Evidence, Finding
from tailwise.report import health

_STYLES = {"error": "bold red", "warning": "bold yellow", "info": "bold cyan"}
#: Lines of evidence for one finding, unless more are asked for.
DEFAULT_EVIDENCE = 8
#: The same for what is only noted.
NOTED_EVIDENCE = 2
SUFFIXES = (".json", ".md")
#: What advice stands under where a finding is only noted.
OTHER_SIGNS = "Only noted: nothing needs doing for it alone. If you see other signs"


def terminal(diagnosis: Diagnosis, limit: int = DEFAULT_EVIDENCE) -> RenderableType:
    """Everything that was found, with at most `limit` lines of evidence for a finding (0: all)."""
    parts: list[RenderableType] = [Text(summary(diagnosis), style="bold")]
    for finding in diagnosis.findings:
        parts += [Text(), _one(finding, limit)]
    if diagnosis.not_looked:
        parts += [Text(), Text("Could not look (which is not the same as fine)", style="bold")]
        parts += [Text(f"  {item.code} {item.title}: {item.reason}", style="dim") for item in diagnosis.not_looked]
    if diagnosis.not_evaluated:
        parts += [Text(), Text("Not evaluated, layer by layer", style="bold")]
        parts += [Text(f"  {line}", style="dim") for line in not_evaluated(diagnosis)]
    if diagnosis.muted:
        parts += [Text(), Text(f"Muted: {', '.join(diagnosis.muted)}", style="dim")]
    return Group(*parts)


def summary(diagnosis: Diagnosis) -> str:
    """`model: 1 error, 2 warnings, 3 notes; 19 rules evaluated, 1 not evaluated`."""
    counts = Counter(finding.severity for finding in diagnosis.findings)
    words = {"error": "error", "warning": "warning", "info": "note"}
    found_kinds = [(counts[name], words[name]) for name in reversed(SEVERITIES) if counts[name]]
    parts = [f"{number} {word}{'s' if number != 1 else ''}" for number, word in found_kinds]
    said = ", ".join(parts) if parts else "nothing found"
    blind = f", {len(diagnosis.not_looked)} not evaluated" if diagnosis.not_looked else ""
    return f"{diagnosis.model}: {said}; {len(diagnosis.looked)} rules evaluated{blind}"


def not_evaluated(diagnosis: Diagnosis, most: int = 5) -> list[str]:
    """A line for each rule that left layers out: which, and why."""
    lines = []
    for item in diagnosis.not_evaluated:
        more = f" and {len(item.layers) - most} more" if len(item.layers) > most else ""
        lines.append(f"{item.code} {item.title}: {', '.join(item.layers[:most])}{more}: {item.reason}")
    return lines


def _one(finding: Finding, limit: int) -> RenderableType:
    head = Text.assemble(
        (finding.severity.upper(), _STYLES[finding.severity]),
        (f"  {finding.code} {finding.title}", "bold"),
        (f"  (evidence for the rule: {finding.strength})", "dim"),
    )
    table = RichTable(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    in_code = tuple(f"tailwise.training.remedies.{name}" for name in finding.functions)
    advice = (("causes", finding.causes), ("remedies", finding.remedies), ("in code", in_code))
    for title, lines in () if finding.noted else advice:
        for index, line in enumerate(lines):
            table.add_row(title if index == 0 else "", Text(f"· {line}"))
    if finding.noted and limit:
        limit = min(limit, NOTED_EVIDENCE)
    for index, item in enumerate(_cut(finding.evidence, limit)):
        table.add_row("evidence" if index == 0 else "", _evidence(item))
    left = len(finding.evidence) - len(_cut(finding.evidence, limit))
    if left:
        table.add_row("", Text(f"… and {left} more; --rows 0 shows all", style="dim"))
    table.add_row("see", Text("; ".join(finding.references), style="dim"))
    return Group(head, Padding(Text(finding.message), (0, 0, 0, 2)), Padding(table, (0, 0, 0, 2)))


def _cut(evidence: Sequence[Evidence], limit: int) -> Sequence[Evidence]:
    return evidence if limit == 0 else evidence[:limit]


def _evidence(item: Evidence) -> Text:
    return Text.assemble((f"{item.layer}: " if item.layer else "", "bold"), item.says)


def to_json(diagnoses: Sequence[Diagnosis]) -> str:
    """One diagnosis as an object, several as a list."""
    documents = [one.to_json() for one in diagnoses]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1, ensure_ascii=False, allow_nan=False)


def to_markdown(diagnoses: Sequence[Diagnosis]) -> str:
    """For an issue or a wiki, with all the evidence."""
    return "\n".join(line for one in diagnoses for line in _markdown(one))


def _markdown(diagnosis: Diagnosis) -> list[str]:
    lines = [
        f"# Diagnosis of {diagnosis.model}",
        "",
        *(health.markdown(diagnosis.health, "AUDIT") if diagnosis.health else []),
    ]
    lines += [summary(diagnosis), ""]
    for finding in diagnosis.findings:
        lines += [f"## {finding.severity.upper()} {finding.code} {finding.title}", "", finding.message, ""]
        in_code = tuple(f"`tailwise.training.remedies.{name}`" for name in finding.functions)
        if finding.noted:
            lines += [f"{OTHER_SIGNS}: {'; '.join(finding.remedies)}.", ""]
        else:
            for title, items in (("Causes", finding.causes), ("Remedies", finding.remedies), ("In code", in_code)):
                lines += [f"{title}:", "", *(f"- {item}" for item in items), ""] if items else []
        lines += [f"Evidence (strength of the rule: {finding.strength}):", ""]
        lines += [f"- {f'`{item.layer}`: ' if item.layer else ''}{item.says}" for item in finding.evidence]
        lines += ["", f"See: {'; '.join(finding.references)}", ""]
    if diagnosis.not_looked:
        lines += ["## Could not look", "", *(f"- {i.code} {i.title}: {i.reason}" for i in diagnosis.not_looked), ""]
    if diagnosis.not_evaluated:
        lines += ["## Not evaluated", "", *(f"- {line}" for line in not_evaluated(diagnosis, most=10**6)), ""]
    return lines


def check_target(path: str) -> None:
    """`UsageError` before the work where nothing could be written to `path`."""
    if Path(path).suffix.lower() not in SUFFIXES:
        raise UsageError("the suffix is not known", where=path, fix=f"choose one of {', '.join(SUFFIXES)}")
    if Path(path).is_dir():
        raise UsageError("is a folder", where=path)


def write(diagnoses: Sequence[Diagnosis], path: str) -> Path | str:
    """Write JSON or Markdown by the suffix of `path`. The file appears whole or not at all."""
    text = to_json(diagnoses) + "\n" if Path(path).suffix.lower() == ".json" else to_markdown(diagnoses)
    return write_whole(path, text.encode())
