"""The list of models: which are shown, and in what order."""

from __future__ import annotations

import logging
import shlex
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field

from tailwise.app.overviews import Overview
from tailwise.app.page_context import PageContext
from tailwise.app.workspace import links
from tailwise.app.workspace.entry import Kind, WorkspaceEntry
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError
from tailwise.core.storage import json_of, read_text
from tailwise.judging.diagnosis.finding import SEVERITIES

_log = logging.getLogger(__name__)
_MOST = 200


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
        text, ok = workspace.keep(entry.id, "says", lambda: says(entry.path)), True
    except TailwiseError as error:
        text = error.what
    except Exception:  # whatever one file holds, the list shows the others
        _log.warning("%s cannot be read", entry.path, exc_info=True)
        text = "it cannot be read"
    in_use = entry.kind == "history" and workspace.store is not None and Path(workspace.store) == entry.path
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
    return f"{plan.kind} {plan.model or 'a model'}: {plan.amount_words}, {len(plan)} tensors, by {plan.allocator}"


def _of_comparison(path: Path) -> str:
    document = json_of(read_text(path))
    one = document[0] if isinstance(document, list) else document
    words = one.get("conclusion") or f"{len(one['layers'])} matrices are in both."
    return f"{one['before']} → {one['after']}: {words}"


def _of_study(path: Path) -> str:
    from tailwise.audits.precision.study import PrecisionStudy
    from tailwise.audits.precision.verdict import verdicts

    study = PrecisionStudy.load(path)
    lowest = Counter(one.format for one in verdicts(study) if one.format)
    bears = ", ".join(f"{count} tolerate {name}" for name, count in lowest.most_common())
    words = f" Of the matrices, {bears}." if bears else ""
    return f"{study.model}: {len(study)} matrices in {', '.join(study.formats)}.{words}"


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
_SIZE = 100
_BUDGET = 0.25  # seconds of reading audits before the list is shown; the rest of the lines come by themselves
_LONGER = 5.0  # where the list cannot be made without reading them


class Listing(BaseModel):
    """What is asked of the list."""

    q: str = Field("", max_length=200)
    tag: str = Field("", max_length=60)
    verdict: Literal["", "error", "warning", "info", "good"] = ""
    sort: Literal["changed", "title", "model", "layers", "alpha", "share_2_4", "worst"] = "changed"
    down: bool = True
    page: int = Field(1, ge=1, le=100_000)
    state: str = Field("", max_length=40)  # of the list that asks whether anything is new


def listed(context: PageContext, asked: Listing) -> dict[str, Any]:
    """Lines of one page, each with its overview or the promise of one."""
    tags = context.tags.all()
    every = context.workspace.entries("audit")
    entries = [entry for entry in every if _fits(context, entry, asked, tags)]
    ends = time.monotonic() + (_LONGER if asked.verdict else _BUDGET)
    lines = [(entry, _overview(context, entry, ends)) for entry in entries]
    unread = sum(one is None for _, one in lines)
    if asked.verdict:
        wanted = None if asked.verdict == "good" else asked.verdict
        lines = [(entry, one) for entry, one in lines if one is not None and not one.trouble and one.worst == wanted]
    lines = _sorted(lines, asked)
    pages = max(1, -(-len(lines) // _SIZE))
    page = min(asked.page, pages)
    known = {str(entry.path) for entry in every}  # the state may be shared with a server of other folders
    every_tag = sorted({tag for path, labels in tags.items() if path in known for tag in labels})
    return {"lines": lines[(page - 1) * _SIZE : page * _SIZE], "total": len(lines), "page": page, "pages": pages,
            "asked": asked, "tags": tags, "every_tag": every_tag, "roots": context.workspace.roots,
            "cut": context.workspace.cut, "unread": unread, "state": context.workspace.state,
            "example": context.workspace.example,
            "others": [] if asked.tag or asked.verdict else others(context.workspace, asked.q)}  # fmt: skip


def _fits(context: PageContext, entry: WorkspaceEntry, asked: Listing, tags: dict[str, tuple[str, ...]]) -> bool:
    own = tags.get(str(entry.path), ())
    if asked.tag and asked.tag not in own:
        return False
    overview = context.overviews.ready(entry)
    text = " ".join((entry.title, overview.model if overview is not None else "", *own)).lower()
    return all(word in text for word in asked.q.lower().split())


def _overview(context: PageContext, entry: WorkspaceEntry, ends: float) -> Overview | None:
    overview = context.overviews.ready(entry)
    if overview is None and time.monotonic() < ends:
        return context.overviews.of(entry)
    return overview


def _sorted(
    lines: Sequence[tuple[WorkspaceEntry, Overview | None]], asked: Listing
) -> list[tuple[WorkspaceEntry, Overview | None]]:
    def value(line: tuple[WorkspaceEntry, Overview | None]) -> Any:
        entry, one = line
        if asked.sort in ("changed", "title"):
            return getattr(entry, asked.sort)
        if one is None:
            return None
        if asked.sort == "worst":
            return (SEVERITIES.index(one.worst) if one.worst in SEVERITIES else -1, one.errors, one.warnings)
        return getattr(one, asked.sort)

    there = [line for line in lines if value(line) is not None]
    absent = [line for line in lines if value(line) is None]
    return [*sorted(there, key=value, reverse=asked.down), *absent]
