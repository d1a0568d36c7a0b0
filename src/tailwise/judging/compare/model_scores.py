"""Scores of models from a CSV file with the columns `model` and `score`."""

from __future__ import annotations

import csv
import math
from pathlib import Path

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import listed
from tailwise.core.storage import read_text


def read_scores(path: str | Path) -> dict[str, float | None]:
    """Model → score; an empty score is None. `UsageError` with the line for what is no number."""
    source = Path(path)
    try:
        text = read_text(source, "utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UnreadableError(f"the scores could not be read ({error})", where=source) from error
    rows = csv.DictReader(text.splitlines())
    try:
        return _scores(rows, source)
    except csv.Error as error:  # a field without an end, as a quote that is left open makes
        where = f"{source}, line {rows.line_num}"
        raise UnreadableError(
            f"is no table of scores ({error})", where=where, fix="write a model,score a line"
        ) from error


def _scores(rows: csv.DictReader[str], source: Path) -> dict[str, float | None]:
    columns = [(name or "").strip() for name in rows.fieldnames or ()]
    if not {"model", "score"} <= set(columns):
        raise UsageError(f"its columns are {listed(columns) or 'none'}", where=source, fix="name them model,score")
    rows.fieldnames = columns
    scores: dict[str, float | None] = {}
    for row in rows:
        where = f"{source}, line {rows.line_num}"
        name = (row["model"] or "").strip()
        if not name or name in scores:
            raise UsageError("the model has no name" if not name else f"{name} stands there twice", where=where)
        scores[name] = _number((row["score"] or "").strip(), where)
    return scores


def _number(text: str, where: str) -> float | None:
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UsageError(f"{text!r} is not a number", where=where, fix="write the score as 0.713, or leave it empty")
    return value
