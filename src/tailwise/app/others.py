"""What lies beside the audits, as rows: what a file is, and how it is opened."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tailwise.app.workspace import links
from tailwise.app.workspace.entry import Kind, WorkspaceEntry
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError
from tailwise.core.harmless import shortened
from tailwise.core.storage import json_of, read_text

_log = logging.getLogger(__name__)
_MOST = 200
_LONGEST = 400  # signs of what a row says


@dataclass(frozen=True)
class Other:
    """A row of the list."""

    id: str
    title: str
    kind: Kind
    changed: float
    says: str
    command: str  # "" where there is a link
    href: str = ""


def others(workspace: Workspace, words: str = "") -> list[Other]:
    """Rows of what is no audit and no plan, and of the plans, which have pages of their own."""
    wanted = words.lower().split()
    entries = [entry for entry in (*workspace.others(), *workspace.entries("plan"))
               if all(word in f"{entry.title} {entry.kind}".lower() for word in wanted)]  # fmt: skip
    entries.sort(key=lambda entry: -entry.changed)
    return [_row(workspace, entry) for entry in entries[:_MOST]]


def _row(workspace: Workspace, entry: WorkspaceEntry) -> Other:
    if entry.kind == "plan":
        return Other(entry.id, entry.title, "plan", entry.changed, _of_plan(workspace, entry), "", links.plan(entry.id))
    says, command = _SAYS[entry.kind]
    ok = False
    try:
        text, ok = workspace.keep(entry.id, "says", lambda: shortened(says(entry.path), _LONGEST)), True
    except TailwiseError as error:
        text = error.what
    except Exception:  # whatever one file holds, the list shows the others
        _log.warning("%s cannot be read", entry.path, exc_info=True)
        text = "it cannot be read"
    in_use = entry.kind == "history" and workspace.store is not None and Path(workspace.store).resolve() == entry.path
    href = "/training" if in_use else _page_of(entry) if ok else ""
    shown = "" if href else command.format(shlex.quote(str(entry.path)))
    return Other(entry.id, entry.title, entry.kind, entry.changed, text, shown, href)


def _page_of(entry: WorkspaceEntry) -> str:
    if entry.kind == "evaluation":
        return links.evaluations()
    return links.file(entry.id) if entry.kind in ("comparison", "precision") else ""


def _of_plan(workspace: Workspace, entry: WorkspaceEntry) -> str:
    try:
        plan = workspace.plan(entry.id)
    except TailwiseError as error:
        return error.what
    said = f"{plan.kind} {plan.model or 'a model'}: {plan.amount_words}, {len(plan)} tensors, by {plan.allocator}"
    return shortened(said, _LONGEST)


def _of_comparison(path: Path) -> str:
    document = json_of(read_text(path))
    one = document[0] if isinstance(document, list) else document
    said = one.get("conclusion") or f"{len(one['layers'])} matrices are in both."
    return f"{one['before']} → {one['after']}: {said}"


def _of_study(path: Path) -> str:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.audits.precision.verdict import verdicts

    study = PrecisionStudy.load(path)
    lowest = Counter(one.format for one in verdicts(study) if one.format)
    bears = ", ".join(f"{count} tolerate {name}" for name, count in lowest.most_common())
    said = f" Of the matrices, {bears}." if bears else ""
    return f"{study.model}: {len(study)} matrices in {', '.join(study.formats)}.{said}"


def _of_evaluation(path: Path) -> str:
    from tailwise.models.evaluation.candidates import read_evaluation
    from tailwise.report.evaluations.evaluation_page import in_a_line

    return in_a_line(read_evaluation(path))


_SAYS: Mapping[Kind, tuple[Callable[[Path], str], str]] = {
    "history": (lambda _: "training runs", "tailwise serve --store {}"),
    "comparison": (_of_comparison, ""),
    "precision": (_of_study, ""),
    "evaluation": (_of_evaluation, ""),
    "unreadable": (lambda _: "it is no audit: damaged, cut off, or of another program", ""),
}
