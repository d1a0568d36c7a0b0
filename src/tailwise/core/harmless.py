"""Names from files as people may see them: none turns the direction of a line, moves a cursor, or is computed."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from functools import lru_cache
from re._parser import SubPattern, parse  # type: ignore[import-not-found]  # typeshed does not know it
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


_LONGEST_PATTERN = 1000
_MOST_REPEATS = 4  # without end, one after the other: each is one more loop over the name


@lru_cache(maxsize=1024)
def pattern_from_file(text: str) -> re.Pattern[str]:
    """A regular expression that came with a model. `ValueError` where it is none, or could run without end.

    Python's search goes back over what it has taken, so `(a+)+` takes 2ⁿ steps on n letters. Repeats within repeats
    are refused, and more than a few of them in a row.
    """
    if len(text) > _LONGEST_PATTERN:
        raise ValueError(f"a pattern of {len(text)} signs")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compiled = re.compile(text)
            unbounded = _repeats(parse(text), inside=False)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no pattern ({error})") from error
    if unbounded > _MOST_REPEATS:
        raise ValueError("a pattern that may run without end")
    return compiled


def _repeats(tree: Any, *, inside: bool) -> int:
    """Repeats without end in a parsed pattern; as many as are too many where one stands within another."""
    found = 0
    for operation, argument in tree:
        if str(operation) in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
            _, most, inner = argument
            many = most > _MOST_REPEATS
            if many and inside:
                return _MOST_REPEATS + 1
            found += many + _repeats(inner, inside=inside or many)
        else:
            found += sum(_repeats(part, inside=inside) for part in _parts(argument))
    return found


def _parts(argument: Any) -> Iterable[Any]:
    """The patterns within an operation: of a group, of alternatives, of a look ahead."""
    if isinstance(argument, SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [part for each in argument for part in _parts(each)]
    return []
