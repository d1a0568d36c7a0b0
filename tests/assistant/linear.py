"""Whether a search by a pattern takes time in line with a text, whatever the text: told from the pattern alone.

`re` goes back where a match fails, and a search begins again at every place. So a repeat without an end is let through
where nothing behind it can fail; where the pattern is tried at one place alone and what follows is told by its first
sign; and where the search cannot begin within what it repeats. What has an end costs a factor, which is bounded too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from re import _constants as op
from re import _parser as parser
from typing import Any

_SINGLE = (op.ANY, op.LITERAL, op.NOT_LITERAL, op.IN)
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT)
_ALPHABET = "".join(map(chr, range(128))) + "é²×·−–…α\u00a0\u202f"
_MOST_WAYS = 1000  # to match what has an end, from one place
Item = tuple[Any, Any]


def _fits(kind: Any, value: Any, sign: str) -> bool:
    if kind is op.ANY:
        return sign != "\n"
    if kind in (op.LITERAL, op.NOT_LITERAL):
        return (ord(sign) == value) == (kind is op.LITERAL)
    if kind is op.RANGE:
        return value[0] <= ord(sign) <= value[1]
    if kind is op.CATEGORY:
        name = str(value)
        is_word = sign.isalnum() or sign == "_"
        return (sign.isdecimal() if "DIGIT" in name else sign.isspace() if "SPACE" in name else is_word) != (
            "NOT" in name
        )
    negated = value[0][0] is op.NEGATE
    return any(_fits(*one, sign) for one in value[negated:]) != negated


def _signs(item: Item) -> set[str]:
    return {sign for sign in _ALPHABET if _fits(*item, sign)}


def _first(items: Sequence[Item], behind: set[str]) -> set[str]:
    """The signs that a sequence can begin with, of what is behind it too where it can be empty."""
    if not items:
        return behind
    (kind, value), rest = items[0], items[1:]
    if kind in _SINGLE:
        return _signs(items[0])
    if kind is op.SUBPATTERN:
        return _first([*value[3], *rest], behind)
    if kind is op.BRANCH:
        return set().union(*(_first([*way, *rest], behind) for way in value[1]))
    if kind in _REPEATS:
        once = _first([*value[2], *rest], behind)
        return once if value[0] else once | _first(rest, behind)
    return _first(rest, behind)  # what takes no sign


def _flat(items: Sequence[Item]) -> list[Item]:
    """Without brackets, which change nothing."""
    return [one for kind, value in items for one in (_flat(value[3]) if kind is op.SUBPATTERN else [(kind, value)])]


def _can_fail(items: Sequence[Item]) -> bool:
    return any(kind not in _REPEATS or (value[0] and _can_fail(value[2])) for kind, value in _flat(items))


class _Look:
    """One pattern as it is gone through."""

    def __init__(self, *, anchored: bool) -> None:
        self.anchored, self.ways = anchored, 1

    def sequence(self, items: Sequence[Item], behind: set[str], last: bool, loop: bool | None = None) -> Iterator[str]:
        """What is wrong, where the signs `behind` may follow, and nothing can fail any more behind the `last`.

        `loop` tells of what is repeated whether its end is free to have no end itself; it is None outside of repeats.
        """
        items = _flat(items)
        for at, (kind, value) in enumerate(items):
            rest = items[at + 1 :]
            follows, ends = _first(rest, behind), last and not _can_fail(rest)
            if kind is op.BRANCH:
                begins = [_first(way, follows) for way in value[1]]
                if loop is not None and sum(map(len, begins)) > len(set().union(*begins)):
                    yield "ways of a repeat begin alike"
                for way in value[1]:
                    yield from self.sequence(way, follows, ends, loop and not rest)
            elif kind in (op.ASSERT, op.ASSERT_NOT):
                yield from self.sequence(value[1], set(), False, loop and False)
            elif kind in _REPEATS:
                free = ends or _is_guarded(items[0] if at == 1 else None, value[2])
                yield from self._repeat(value, follows, free, loop and not rest)

    def _repeat(self, value: Any, follows: set[str], free: bool, loop: bool | None) -> Iterator[str]:
        least, most, inner = value
        begins = _first(inner, set())
        told = not (begins & follows)
        free = free or (told and (self.anchored or bool(loop)) and loop is not False)
        if most is op.MAXREPEAT and not free:
            yield f"{list(inner)} is repeated without an end, and what is behind it can fail"
        if loop is not None and not told:
            yield f"where the repeat of {list(inner)} ends is not told within another repeat"
        if most is not op.MAXREPEAT and not told:
            self.ways *= most - least + 1
        if most == 1:
            yield from self.sequence(inner, follows, free, loop)
        elif len(_flat(inner)) > 1 or _flat(inner)[0][0] not in _SINGLE:
            yield from self.sequence(inner, follows | begins, False, free)


def _is_guarded(guard: Item | None, repeated: Sequence[Item]) -> bool:
    """Whether the search can only begin where the sign before is none that is repeated."""
    if guard is None or guard[0] is not op.ASSERT_NOT or guard[1][0] > 0:
        return False
    before, inner = _flat(guard[1][1]), _flat(repeated)
    single = len(before) == len(inner) == 1 and before[0][0] in _SINGLE and inner[0][0] in _SINGLE
    return single and _signs(inner[0]) <= _signs(before[0])


def problems(pattern: str, call: str = "search") -> list[str]:
    """Why a pattern may take more than time in line; `call` is the function of `re` that it is used by."""
    tree = parser.parse(pattern)
    ways = [list(way) for way in tree[0][1][1]] if len(tree) == 1 and tree[0][0] is op.BRANCH else [list(tree)]
    found, count = [], 0
    for way in ways:
        at_begin = bool(way) and way[0] == (op.AT, op.AT_BEGINNING) and not tree.state.flags & re.MULTILINE
        look = _Look(anchored=call in ("match", "fullmatch") or at_begin)
        found += look.sequence(way, set(), call != "fullmatch")
        count += look.ways
    return found + ([f"{count} ways to match from one place"] if count > _MOST_WAYS else [])
