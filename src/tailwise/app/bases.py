"""Which of the other audits a model can be held against: what fits, the nearest weights first."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from tailwise.app.overviews import Overview, alike, apart
from tailwise.app.page_context import PageContext
from tailwise.app.workspace.entry import WorkspaceEntry

_BUDGET = 0.25  # seconds of reading audits that no page has shown yet


@dataclass(frozen=True)
class Bases:
    """The other audits, in groups with a title, best first."""

    groups: tuple[tuple[str, tuple[WorkspaceEntry, ...]], ...]
    best: WorkspaceEntry | None  # what is chosen unless another is
    says: str  # why, or that none fits


def bases_of(context: PageContext, audit: str) -> Bases | None:
    """What the audit can be compared with; None where there is no other.

    What fits best has the most matrices of the same name and shape; of several, the one whose weights are nearest, as
    a fine-tune's are to its base, or a checkpoint's to its neighbours. The same weights again show no change.
    """
    own = context.overviews.of(context.workspace.entry(audit))
    ends = time.monotonic() + _BUDGET
    found = [(entry, _overview(context, entry, ends)) for entry in context.workspace.entries("audit")
             if entry.id != audit]  # fmt: skip
    readable = [(entry, other) for entry, other in found if other is None or not other.trouble]
    return _grouped(own, readable) if readable else None


def _overview(context: PageContext, entry: WorkspaceEntry, ends: float) -> Overview | None:
    return context.overviews.of(entry) if time.monotonic() < ends else context.overviews.ready(entry)


def _grouped(own: Overview, others: Sequence[tuple[WorkspaceEntry, Overview | None]]) -> Bases:
    ranked: list[tuple[float, float, WorkspaceEntry]] = []
    same, nothing, unread = [], [], []
    for entry, other in others:
        share = None if other is None else alike(own, other)
        if other is None or share is None:
            unread.append(entry)
        elif other.fingerprint and other.fingerprint == own.fingerprint:
            same.append(entry)
        elif not share:
            nothing.append(entry)
        else:
            gap = apart(own, other)
            ranked.append((-share, float("inf") if gap is None else gap, entry))
    ranked.sort(key=lambda item: item[:2])
    whole = tuple(entry for share, _, entry in ranked if share == -1)
    part = tuple(entry for share, _, entry in ranked if share != -1)
    groups = (
        ("The same matrices, nearest weights first", whole), ("Some of the matrices", part),
        ("The same weights", tuple(same)), ("Not read yet", tuple(unread)), ("No matrix in common", tuple(nothing)),
    )  # fmt: skip
    best = ranked[0][2] if ranked else None
    return Bases(tuple(group for group in groups if group[1]), best, _says(ranked, len(others), len(unread)))


def _says(ranked: Sequence[tuple[float, float, WorkspaceEntry]], others: int, unread: int) -> str:
    beside = f" {unread} {'was' if unread == 1 else 'were'} not read yet." if unread else ""
    if not ranked:
        none = (
            "The other audit has none of these matrices"
            if others == 1
            else (f"None of the {others} other audits has a matrix of the same name and shape")
        )
        return f"{none}.{beside}"
    share = -ranked[0][0]
    of = "all matrices match" if share == 1 else f"{share:.0%} of the matrices match".replace("%", " %")
    nearest = ", its weights are the nearest" if len(ranked) > 1 and ranked[1][0] == ranked[0][0] else ""
    return f"{of[0].upper()}{of[1:]}{nearest}.{beside}"
