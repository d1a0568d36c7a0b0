"""The layers of an audit as a table that is searched, filtered, sorted and cut."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailwise.audits.audit import Audit
from tailwise.audits.rows import LayerRow
from tailwise.audits.trusted import value_of
from tailwise.core.errors import UsageError, unknown_name
from tailwise.judging.diagnosis.finding import Diagnosis

Record = Mapping[str, Any]

#: Columns that hold words; all others hold numbers.
WORDS = ("name", "role", "shape", "dtype", "status", "findings")
FACTS = ("name", "role", "block", "shape", "parameters", "dtype", "status", "findings")
#: In a text with single spaces. A name has an end, so that letters without one are not gone through from each of them.
CONDITION = re.compile(r"([A-Za-z]\w{0,79}) ?(<=|>=|!=|==|=|<|>|:) ?(\S+)")
_MOST_TEXT = 400


@dataclass(frozen=True)
class Query:
    """What is asked of the table.

    `text` holds words that must stand in a name, role, shape, status or code of a finding, and conditions such as
    `alpha>6`, `block<=3`, `role:mlp_up`, `findings:TW101`.
    """

    text: str = ""
    sort: str = ""  # a column; from the data to the labels without one
    down: bool = False
    page: int = 1
    size: int = 50


@dataclass(frozen=True)
class LayerPage:
    """One page of the answer."""

    records: Sequence[Record]
    total: int  # that match
    of: int  # layers there are
    page: int
    pages: int


def records(audit: Audit, diagnosis: Diagnosis | None = None) -> list[dict[str, Any]]:
    """One record per row, measured or not: facts, codes of findings, and every metric that may be shown."""
    codes: dict[str, list[str]] = {}
    for finding in diagnosis.findings if diagnosis is not None else ():
        for name in finding.layers:
            codes.setdefault(name, []).append(finding.code)
    return [_record(row, " ".join(codes.get(row.name, ()))) for row in audit.rows]


def _record(row: LayerRow, codes: str) -> dict[str, Any]:
    times = f" ×{row.slices}" if row.slices > 1 else ""
    record = {"name": row.name, "role": row.role, "block": row.block, "shape": f"{row.rows}×{row.cols}{times}",
              "parameters": row.n_params, "dtype": row.dtype, "status": row.status, "findings": codes}  # fmt: skip
    # Exponents of tails without spread carry no meaning (DEFINITIONS §2).
    return record | {key: value_of(row, key) for key in row.metrics}


def columns(rows: Sequence[Record]) -> list[str]:
    """Every column, facts first."""
    return list(dict.fromkeys([*FACTS, *(key for row in rows for key in row)]))


def select(rows: Sequence[Record], query: Query) -> LayerPage:
    """The page that is asked for. `UsageError` for an unknown column or a condition that cannot be."""
    if len(query.text) > _MOST_TEXT:
        raise UsageError("the filter is too long", fix=f"keep it below {_MOST_TEXT} characters")
    matching = _matching(rows, query.text)
    if query.sort:
        matching = _sorted(matching, query.sort, query.down, columns(rows))
    size = max(1, min(query.size, 1000))
    pages = max(1, -(-len(matching) // size))
    page = max(1, min(query.page, pages))
    return LayerPage(matching[(page - 1) * size : page * size], len(matching), len(rows), page, pages)


def _matching(rows: Sequence[Record], text: str) -> list[Record]:
    known, text = columns(rows), " ".join(text.split())
    tests = [_condition(match, known) for match in CONDITION.finditer(text)]
    words = CONDITION.sub(" ", text).lower().split()
    return [row for row in rows if all(test(row) for test in tests) and (not words or _holds(row, words))]


def _holds(row: Record, words: Sequence[str]) -> bool:
    text = " ".join(str(row[key]) for key in WORDS).lower()
    return all(word in text for word in words)


def _condition(match: re.Match[str], known: Sequence[str]) -> Any:
    name, sign, given = match.groups()
    if name not in known:
        raise unknown_name("column", name, known)
    if name in WORDS:
        if sign not in (":", "=", "==", "!="):
            raise UsageError(f"{name} holds words, which have no order", where=match[0], fix=f"write {name}:{given}")
        exact, wanted, negated = sign in ("=", "=="), given.lower(), sign == "!="
        return lambda row: _agrees(str(row[name]).lower(), wanted, exact=exact) != negated
    try:
        bound = float(given)
    except ValueError:
        raise UsageError(f"{given!r} is no number", where=match[0], fix=f"write {name}{sign}4, for example") from None
    holds = {"<": float.__lt__, ">": float.__gt__, "<=": float.__le__, ">=": float.__ge__, "!=": float.__ne__}.get(
        sign, float.__eq__
    )
    return lambda row: row.get(name) is not None and holds(float(row[name]), bound)


def _sorted(rows: Sequence[Record], name: str, down: bool, known: Sequence[str]) -> list[Record]:
    if name not in known:
        raise unknown_name("column", name, known)
    there = [row for row in rows if row.get(name) not in (None, "")]
    absent = [row for row in rows if row.get(name) in (None, "")]
    key = (lambda row: _natural(str(row[name]))) if name in WORDS else (lambda row: row[name])
    return [*sorted(there, key=key, reverse=down), *absent]  # what is not there comes last either way


def _natural(text: str) -> list[tuple[int, int, str]]:
    """`layers.10` after `layers.9`. Digits are compared as text, by length first: there may be thousands of them."""
    parts = [part for part in re.split(r"([0-9]+)", text) if part]
    return [(0, len(part.lstrip("0")), part.lstrip("0")) if part[0] in "0123456789" else (1, 0, part) for part in parts]


def _agrees(text: str, wanted: str, *, exact: bool) -> bool:
    return text == wanted if exact else wanted in text
