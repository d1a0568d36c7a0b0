"""The zoo as a table of the documentation: what is read, what is refused, and since when."""

from __future__ import annotations

from collections import defaultdict

from zoo.entry import Entry
from zoo.table import entries

HEAD = ("| kind | which | | since |", "| --- | --- | --- | --- |")


def table() -> str:
    """A row for each kind, outcome and version, kinds in the order of the entries."""
    rows: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for entry in entries():
        rows[entry.kind, "" if entry.pending else entry.since, _outcome(entry)].append(entry.name)
    kinds = list(dict.fromkeys(kind for kind, _, _ in rows))
    ranked = sorted(rows.items(), key=lambda row: (kinds.index(row[0][0]), row[0][1:]))
    lines = [f"| {kind} | {'; '.join(names)} | {outcome} | {since} |" for (kind, since, outcome), names in ranked]
    return "\n".join([*HEAD, *lines])


def summary() -> str:
    """How many there are of each."""
    found = [_outcome(entry) for entry in entries()]
    counts = {outcome: found.count(outcome) for outcome in ("read", "refused", "not right yet")}
    return ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)


def _outcome(entry: Entry) -> str:
    return "not right yet" if entry.pending else "refused" if entry.refused else "read"
