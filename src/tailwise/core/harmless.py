"""Names from files as people may see them: none turns the direction of a line, moves a cursor, or is computed."""

from __future__ import annotations

import re
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterable, Sequence
from functools import lru_cache
from html import escape
from math import comb, prod
from re._parser import SubPattern, parse  # type: ignore[import-not-found]  # typeshed does not know it
from typing import Any

#: Controls of direction, by which `exe.txt` can be shown for another name; those of a terminal; halves of characters.
_CONTROLS = re.compile("[\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
#: What a cell begins with that a spreadsheet computes.
_FORMULA = ("=", "+", "-", "@", "\t", "\r")


def visible(text: str) -> str:
    """The same text with � for every sign that changes how the others are shown. Line ends and tabs stay."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def one_line(text: str) -> str:
    """The same as `visible` in one line: no name begins another, which a CI would read as a command (`::error::`)."""
    return visible(" ".join(text.splitlines()))


#: Signs of a text that a file may name something by; what shows it takes time with its length, again and again.
LONGEST_TEXT = 1 << 14


def shortened(text: str, most: int = LONGEST_TEXT) -> str:
    """The same text where it is not longer than `most` signs; else its beginning, and how long it is."""
    return text if len(text) <= most else f"{text[:most]}… ({len(text)} signs)"


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names in a line: the first `most` of them, each shortened, and how many more there are."""
    said = ", ".join(shortened(name, 200) for name in names[:most])
    return said if len(names) <= most else f"{said} and {len(names) - most} more"


def in_markdown(text: str) -> str:
    """Text for a line or a cell of Markdown: no HTML, no link, no end of the cell."""
    return escape(one_line(text), quote=False).replace("|", "\\|").replace("](", "\\](")


def as_code(text: str) -> str:
    """Text as code in a line of Markdown."""
    return f"`{one_line(text).replace('`', chr(39))}`"


def cell(value: Any) -> Any:
    """A value for CSV: text that a spreadsheet would compute gets an apostrophe, by which it is shown as it is."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA) else value


def cells(values: Iterable[Any]) -> list[Any]:
    """A line of CSV."""
    return [cell(value) for value in values]


_LONGEST_PATTERN = 1000
_MOST_REPEATS = 4  # without end, one after the other: each is one more loop over the name
_MOST_WAYS = 100_000  # to go through the rest: of alternatives and optional parts one after the other
_NO_END = _MOST_REPEATS + 1, 1  # what is beyond them


#: Steps that a search may take at worst and still is Python's own; beyond, it is one that can be told to end.
_MOST_STEPS = 10**7
#: Seconds that a search may take, and that all slow ones may take in a minute, and what counts as one: honest patterns
#: take microseconds.
_LONGEST_SEARCH, _MOST_SLOW, _SLOW = 1.0, 10.0, 0.01
_LEAST_TIME = 0.02
_slow: deque[tuple[float, float]] = deque()  # when a slow search ended, and its seconds
_lock = threading.Lock()


class FilePattern:
    """A regular expression that came with a model or a gate, which is searched with within bounds of time.

    Each way to search is a `ValueError` where it would go on without end.
    """

    def __init__(self, compiled: re.Pattern[str], repeats: int, ways: int) -> None:
        self.pattern = compiled.pattern
        self._compiled, self._repeats, self._ways = compiled, repeats, ways
        self._gave_up = False

    def search(self, name: str) -> bool:
        """Whether it is found anywhere in a name."""
        return self._found("search", name, len(name) + 1)

    def match(self, name: str) -> bool:
        """Whether a name begins with it."""
        return self._found("match", name, 1)

    def _found(self, how: str, name: str, starts: int) -> bool:
        # k repeats one after the other divide n letters in (n + k over k) ways, from each place where it may begin.
        steps = comb(len(name) + self._repeats, self._repeats) * self._ways * starts
        if steps <= _MOST_STEPS:
            return getattr(self._compiled, how)(name) is not None
        if self._gave_up:
            raise ValueError("a pattern that runs without end")
        try:
            return self._within_time(how, name)
        except TimeoutError:
            self._gave_up = True
            raise ValueError("a pattern that runs without end") from None

    def _within_time(self, how: str, name: str) -> bool:
        import regex

        begun = time.monotonic()
        try:
            compiled = regex.compile(self.pattern)
        except regex.error as error:
            raise ValueError(f"a pattern that may run without end, and cannot be told to end ({error})") from error
        try:  # other threads go on meanwhile
            found = getattr(compiled, how)(name, timeout=_time_left(begun), concurrent=True)
        finally:
            spent = time.monotonic() - begun
            if spent > _SLOW:
                with _lock:
                    _slow.append((begun + spent, spent))
        return found is not None


def _time_left(now: float) -> float:
    """Seconds for one more search."""
    with _lock:
        while _slow and now - _slow[0][0] > 60.0:
            _slow.popleft()
        left = _MOST_SLOW - sum(spent for _, spent in _slow)
    return max(_LEAST_TIME, min(_LONGEST_SEARCH, left))


@lru_cache(maxsize=1024)
def pattern_from_file(text: str, *, longest: int = _LONGEST_PATTERN) -> FilePattern:
    """A regular expression that came with a model or a gate. `ValueError` where it is none, or could run without end.

    Python's search goes back over what it has taken, so `(a+)+` takes 2ⁿ steps on n letters, and n times `a?` does so
    too (Cox 2007). Repeats of what has more than one way to match, or more than one length, are refused, and more than
    a few repeats, or many choices, in a row. What a few still cost with a long name is bounded when it is searched.
    """
    if len(text) > longest:
        raise ValueError(f"a pattern of {len(text)} signs")
    compiled, repeats, ways = _measured(text)
    if repeats > _MOST_REPEATS or ways > _MOST_WAYS:
        raise ValueError("a pattern that may run without end")
    return FilePattern(compiled, repeats, ways)


def steps_of(text: str, letters: int) -> int:
    """Steps that matching a pattern with a name of so many letters takes at worst. `ValueError` where it is none."""
    _, repeats, ways = _measured(text)
    return comb(letters + repeats, repeats) * ways


def _measured(text: str) -> tuple[re.Pattern[str], int, int]:
    """A pattern, its repeats without end, and the ways to go through the rest of it."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return re.compile(text), *_cost(parse(text))
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"no pattern ({error})") from error


def _cost(tree: Any) -> tuple[int, int]:
    """Repeats without end in a parsed pattern, and the ways to go through the rest of it."""
    repeats, ways = 0, 1
    for operation, argument in tree:
        one, other = _cost_of(str(operation), argument)
        repeats, ways = repeats + one, min(ways * other, _MOST_WAYS + 1)
    return repeats, ways


def _cost_of(operation: str, argument: Any) -> tuple[int, int]:
    if operation == "BRANCH":
        costs = [_cost(part) for part in argument[1]]
        return max(one for one, _ in costs), sum(other for _, other in costs)
    if operation not in ("MAX_REPEAT", "MIN_REPEAT", "POSSESSIVE_REPEAT"):
        costs = [_cost(part) for part in _parts(argument)]
        return sum(one for one, _ in costs), prod(other for _, other in costs)
    least, most, inner = argument
    repeats, ways = _cost(inner)
    if most > _MOST_REPEATS:
        shortest, widest = inner.getwidth()
        if repeats or ways > 1 or shortest != widest:
            return _NO_END
        return int(most != least), 1
    return repeats * most, max(ways, 1) ** most * (most - least + 1)


def _parts(argument: Any) -> Iterable[Any]:
    """The patterns within an operation: of a group, of alternatives, of a look ahead."""
    if isinstance(argument, SubPattern):
        return [argument]
    if isinstance(argument, tuple | list):
        return [part for each in argument for part in _parts(each)]
    return []
