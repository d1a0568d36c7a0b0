"""The columns that people read first, shared by the terminal and by Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tailwise.report.grid import Grid


@dataclass(frozen=True)
class Column:
    """A column as shown."""

    key: str
    title: str
    numeric: bool = True
    digits: int = 2
    combined: bool = False  # made of several facts
    give_up: int = 0  # where there is little room: the highest first, 0 never


BRIEF = (
    Column("name", "layer", numeric=False),
    Column("role", "role", numeric=False),
    Column("shape", "shape", combined=True, give_up=3),
    Column("alpha", "α ± σ", combined=True),
    Column("ks_distance", "D", digits=3, give_up=4),
    Column("alpha_hill", "α Hill", give_up=2),
    Column("alpha_hill_z", "z Hill", digits=1),
    Column("log_spectral_norm", "log λmax", give_up=6),
    Column("stable_rank", "stable rank", digits=1, give_up=5),
    Column("singular_entropy", "entropy", digits=3, give_up=7),
    Column("num_traps", "traps", digits=1, give_up=8),
    Column("note", "note", numeric=False, combined=True, give_up=1),
)

_NOTES = {"OK": "", "FEW_EIGENVALUES": "few λ", "DEGENERATE": "degenerate", "NOT_FINITE": "NaN/Inf"}


def cell(column: Column, row: Mapping[str, Any]) -> str:
    """The text of one cell."""
    if column.key == "shape":
        times = f" ×{row['slices']}" if row["slices"] > 1 else ""
        return f"{row['rows']}×{row['cols']}{times}"
    if column.key == "alpha":
        return _with_error(row.get("alpha"), row.get("alpha_sigma"))
    if column.key == "note":
        status = str(row["status"])
        return _NOTES.get(status, status.lower().replace("_", " "))
    value = row.get(column.key)
    if value is None:
        return "–"
    return f"{value:.{column.digits}f}" if isinstance(value, float) else printable(str(value))


def columns_grid(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]], below: str = "") -> Grid:
    """A line a row."""
    words = [index for index, column in enumerate(columns) if not column.numeric]
    lines = [[cell(column, row) for column in columns] for row in rows]
    return Grid(tuple(column.title for column in columns), lines, below=below, words=words)


def printable(text: str) -> str:
    """`text` on one line: control characters as escapes."""
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in text)


def _with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.2f}" if error is None else f"{value:.2f} ± {error:.2f}"
