"""A named collection that built-ins fill explicitly and third parties fill through entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Generic, TypeVar

from tailwise.core.errors import UsageError, unknown_name

T = TypeVar("T")


class Registry(Generic[T]):
    """Names to things of one kind.

    `group` is the entry-point group (`tailwise.metrics`, …) that third parties add to; it is read once, at the
    first look-up, so that importing tailwise costs nothing. A third party cannot replace a built-in.
    """

    def __init__(self, kind: str, group: str, load_builtins: Callable[[], None]) -> None:
        self._kind, self._group, self._load_builtins = kind, group, load_builtins
        self._items: dict[str, T] = {}
        self._loaded = self._loading = self._has_builtins = False

    def add(self, name: str, item: T) -> None:
        """Register `item`; a second item of the same name is a `UsageError`."""
        if name in self._items:
            raise UsageError(f"the {self._kind} {name!r} is registered twice")
        self._items[name] = item

    def __getitem__(self, name: str) -> T:
        self._load()
        if name not in self._items:
            raise unknown_name(self._kind, name, self._items)
        return self._items[name]

    def __contains__(self, name: object) -> bool:
        self._load()
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(self._items)

    def items(self) -> list[tuple[str, T]]:
        """All pairs, built-ins first, in the order they were registered."""
        self._load()
        return list(self._items.items())

    def sort(self, key: Callable[[T], int]) -> None:
        """Put the items in the order of `key`, keeping the order of equals."""
        self._items = dict(sorted(self._items.items(), key=lambda pair: key(pair[1])))

    def _load(self) -> None:
        if self._loaded or self._loading:  # built-ins look themselves up while they load
            return
        self._loading = True
        try:
            if not self._has_builtins:
                self._load_builtins()
                self._has_builtins = True
            for point in entry_points(group=self._group):
                point.load()
            self._loaded = True
        finally:
            self._loading = False
