"""Names from files as people may see them: none turns the direction of a line, moves a cursor, or is computed."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

#: Controls of direction, by which `exe.txt` can be shown for another name; those of a terminal; halves of characters.
_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
#: What a cell begins with that a spreadsheet computes.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """The same text with � for every sign that changes how the others are shown. Line ends and tabs stay."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def cell(value: Any) -> Any:
    """A value for CSV: text that a spreadsheet would compute gets an apostrophe, by which it is shown as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """A line of CSV."""
    return [cell(value) for value in values]
