"""The table of layers, filtered and sorted."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable
from typing import Any

from tailwise.assistant.answer import Fact
from tailwise.assistant.functions.audits import AUDIT
from tailwise.assistant.functions.function import Place, function
from tailwise.audits.audit import Audit, LayerRow
from tailwise.errors import UsageError, unknown_name
from tailwise.workspace import links

_MOST = 50
_FACTS: dict[str, Callable[[LayerRow], Any]] = {
    "name": lambda row: row.name,
    "role": lambda row: row.role,
    "block": lambda row: row.block,
    "rows": lambda row: row.rows,
    "cols": lambda row: row.cols,
    "parameters": lambda row: row.n_params,
    "dtype": lambda row: row.dtype,
    "status": lambda row: row.status,
}
_SIGNS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne, "<": operator.lt, ">": operator.gt, "<=": operator.le, ">=": operator.ge,
}  # fmt: skip
_TERM = re.compile(r"\s*([\w@]+)\s*(<=|>=|!=|=|<|>|~)\s*(.+?)\s*")
_HOW = 'terms joined by "and": alpha > 6 and role = mlp_up and name ~ up_proj (~: contains)'
_DEFAULT = "name,role,block,alpha,alpha_hill,stable_rank"


@function(
    audit=AUDIT,
    columns=f"comma list of facts ({', '.join(_FACTS)}) and metrics; {_DEFAULT} where it is left out",
    where=_HOW,
    sort="column to sort by",
    descending="true: the largest first",
    limit=f"rows, at most {_MOST}",
)
def query(  # noqa: PLR0913, PLR0917 - a table has as many
    place: Place, audit: str = "", columns: str = "", where: str = "", sort: str = "", descending: bool = False,
    limit: int = 20,
) -> Fact:  # fmt: skip
    """Look into the table of an audit's layers, with any columns, a filter and an order."""
    name = place.audit(audit)
    found = place.workspace.audit(name)
    wanted = [part.strip() for part in (columns or _DEFAULT).split(",") if part.strip()]
    wanted = list(dict.fromkeys(["name", *wanted, *([sort] if sort else [])]))
    readers = {column: reader(found, column) for column in wanted}
    rows = [row for row in found.rows if row.measured or "status" in where or "status" in wanted]
    kept = [row for row in rows if all(test(row) for test in _tests(found, where))]
    if sort:
        kept = ordered(kept, readers[sort], descending)
    most = max(1, min(limit, _MOST))
    return {
        "audit": name,
        "columns": wanted,
        "layers": [{column: readers[column](row) for column in wanted} for row in kept[:most]],
        "matching": len(kept),
        "of": len(rows),
        "links": [place.link("its layers", links.layers(name))]
        + [place.link(row.name, links.layer(name, row.name)) for row in kept[: min(most, 5)]],
    }


def reader(found: Audit, column: str) -> Callable[[LayerRow], Any]:
    """How a row says a column. `UsageError` with near names for one that there is not."""
    if column in _FACTS:
        return _FACTS[column]
    metrics = {name for layer in found for name in layer.row.metrics}
    if column not in metrics:
        raise unknown_name("column in this audit", column, [*_FACTS, *metrics])
    return lambda row: None if column in row.degenerate else row.metrics.get(column)


def ordered(rows: list[LayerRow], key: Callable[[LayerRow], Any], descending: bool) -> list[LayerRow]:
    """Sorted, with the rows that have no value at the end."""
    some = [row for row in rows if key(row) is not None]
    none = [row for row in rows if key(row) is None]
    return [*sorted(some, key=key, reverse=descending), *none]


def _tests(found: Audit, where: str) -> list[Callable[[LayerRow], bool]]:
    parts = [part for part in re.split(r"\s+and\s+", where.strip(), flags=re.IGNORECASE) if part]
    return [_test(found, part) for part in parts]


def _test(found: Audit, text: str) -> Callable[[LayerRow], bool]:
    match = _TERM.fullmatch(text)
    if match is None:
        raise UsageError(f"{text[:60]!r} is not a condition", fix=_HOW)
    column, sign, value = match[1], match[2], match[3].strip("'\"")
    read = reader(found, column)
    if sign == "~":
        return lambda row: value.lower() in str(read(row)).lower()
    try:
        bound: float | str = float(value)
    except ValueError:
        bound = value
        if sign not in ("=", "!="):
            raise UsageError(f"{value[:40]!r} is no number", where=column, fix=_HOW) from None
    return lambda row: _holds(read(row), sign, bound)


def _holds(value: Any, sign: str, bound: float | str) -> bool:
    if value is None:
        return False
    if isinstance(bound, str) or isinstance(value, str):
        return (str(value) == str(bound)) == (sign == "=") if sign in ("=", "!=") else False
    return bool(_SIGNS[sign](value, bound))
