"""Patterns of layers' names: one that a file holds has an end, one that someone typed is Python's own."""

from __future__ import annotations

import re

from tailwise.core.errors import UsageError
from tailwise.core.harmless import pattern_from_file

#: Signs of a pattern of layers: names may be listed one after the other.
LONGEST_PATTERN = 20_000


def check_pattern_of_file(pattern: str | None, where: object, fix: str) -> None:
    """`UsageError` where a pattern that a file holds is none, or could run without end."""
    try:
        pattern_from_file(pattern or "", longest=LONGEST_PATTERN)
    except ValueError as error:
        raise UsageError(f"{str(pattern)[:200]!r} is {error}", where=where, fix=fix) from error


def is_found(pattern: str, name: str) -> bool:
    """Whether a pattern is found anywhere in a name. `UsageError` where the search would go on without end.

    Patterns that `pattern_from_file` refuses are searched by Python without bounds: whoever reads one from a file
    refuses it (`check_pattern_of_file`), so that it was typed, or stands in a program.
    """
    try:
        bounded = pattern_from_file(pattern, longest=LONGEST_PATTERN)
    except ValueError:
        return re.search(pattern, name) is not None
    try:
        return bounded.search(name)
    except ValueError as error:
        fix = "write it with fewer repeats; several expressions, one after the other, may share the layers"
        raise UsageError(f"{pattern[:200]!r} is {error} in a name of {len(name)} letters", fix=fix) from error
