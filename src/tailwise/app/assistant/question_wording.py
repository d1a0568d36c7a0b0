"""Words of a question, in an order, found in a time that grows with the question and no faster."""

from __future__ import annotations

import re


class Wording:
    """Ways to say something: `low.*rank` is `low`, and `rank` somewhere behind it.

    One pattern would look for the second part again from each place where the first is: in a question that repeats the
    first and lacks the second, that is quadratic time, and cubic with three parts. Here each part is looked for once,
    behind the first place of the part before it, which finds as much. So `.*` stands between parts that are whole.
    """

    def __init__(self, *ways: str) -> None:
        self._ways = [[re.compile(part) for part in way.split(".*")] for way in ways]

    def fits(self, text: str) -> bool:
        """Whether a text, in one line, says it in one of the ways."""
        return any(_in_order(parts, text) for parts in self._ways)


def _in_order(parts: list[re.Pattern[str]], text: str) -> bool:
    at = 0
    for part in parts:
        found = part.search(text, at)
        if found is None:
            return False
        at = found.end()
    return True
