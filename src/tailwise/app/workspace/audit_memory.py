"""What was read and worked out, kept in memory within bounds."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import Condition
from typing import Any, TypeVar

from cachetools import LRUCache, cached

Value = TypeVar("Value")

_MOST = 256  # things
_BYTES = 1 << 30  # charts as they are, and what is made of a file as the file: in memory it is about as large
_SMALL = 1 << 14  # what anything else is taken to weigh


class AuditMemory:
    """Values by key, the ones that were not asked for longest dropped first. May be used by several threads."""

    def __init__(self, *, most: int = _MOST, nbytes: int = _BYTES) -> None:
        # With a condition, who asks for what is being made waits for that alone, not for a large audit of another.
        by_key = cached(_Bounded(most, nbytes), key=lambda key, *_: key, condition=Condition())
        self._made: Callable[..., tuple[Any, int]] = by_key(_made)

    def get(self, key: Hashable, make: Callable[[], Value], nbytes: int = _SMALL) -> Value:
        """The value of a key, made at most once at a time: six charts of a page read their audit once."""
        value: Value = self._made(key, make, nbytes)[0]
        return value


class _Bounded(LRUCache[Hashable, tuple[Any, int]]):
    """Values with their bytes, bounded in number, too."""

    def __init__(self, most: int, nbytes: int) -> None:
        # The newest stays even where it is larger than all that may be kept: it is in use.
        super().__init__(nbytes, getsizeof=lambda made: min(made[1], nbytes))
        self._most = most

    def __setitem__(self, key: Hashable, made: tuple[Any, int]) -> None:
        while len(self) >= self._most:
            self.popitem()
        super().__setitem__(key, made)


def _made(_: Hashable, make: Callable[[], Value], nbytes: int) -> tuple[Value, int]:
    value = make()
    return value, len(value) if isinstance(value, bytes) else nbytes
