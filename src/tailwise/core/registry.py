"""A named collection that built-ins fill explicitly and third parties fill through entry points."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import entry_points
from typing import Any, Generic, TypeVar

from tailwise.core.errors import UsageError, unknown_name

T = TypeVar("T")

_OURS = "tailwise."
_EVERY: list[Registry[Any]] = []


def unregister(name: str, kind: str | None = None) -> None:
    """Take what a notebook, a script or a package registered out again, by its name.

    `kind` says of what, where two registries have the name: `metric`, `rule`, `chart`, `operator`, `allocator`,
    `estimator`, `number format`, `export format`, `alarm rule`, `function`. Raises `UsageError` for what is built in,
    and for a name that nothing has.

    >>> import tailwise as tw
    >>> @tw.metric("1", source="nowhere")
    ... def one(spectrum):
    ...     "One."
    ...     return 1.0
    >>> tw.extend.unregister("one")
    >>> "one" in tw.METRICS
    False
    """
    kinds = [item.kind for item in _EVERY]
    if kind is not None and kind not in kinds:
        raise unknown_name("kind of thing to register", kind, kinds)
    found = [item for item in _EVERY if kind in (None, item.kind) and name in item]
    if not found:
        raise unknown_name(kind or "registered thing", name, [one for item in _EVERY for one in item])
    found = [item for item in found if not item.is_built_in(name)] or found
    if len(found) > 1:
        raise UsageError(
            f"{name!r} is {' and '.join(item.kind for item in found)}", fix=f"say which, as kind={found[0].kind!r}"
        )
    found[0].remove(name)


def _is_ours(module: str) -> bool:
    return module.startswith(_OURS)


class Registry(Generic[T]):
    """Names to things of one kind.

    `group` is the entry-point group (`tailwise.metrics`, …) that third parties add to; it is read once, at the
    first look-up, so that importing tailwise costs nothing. A third party cannot replace a built-in. What a module
    (a notebook, a script) registers again replaces what it had under that name, and `unregister` takes it out.
    """

    def __init__(self, kind: str, group: str, load_builtins: Callable[[], None]) -> None:
        self._kind, self._group, self._load_builtins = kind, group, load_builtins
        self._items: dict[str, T] = {}
        self._by: dict[str, str] = {}
        self._changed: list[Callable[[], None]] = []
        self._loaded = self._loading = self._has_builtins = False
        _EVERY.append(self)

    def __repr__(self) -> str:
        names = list(self)
        shown = [*names[:8], *(["…"] if len(names) > 8 else [])]
        return f"Registry({len(names)} of the kind {self._kind}: {', '.join(shown)})"

    def _ipython_key_completions_(self) -> list[str]:
        return list(self)

    @property
    def kind(self) -> str:
        """What its items are called: metric, rule, …"""
        return self._kind

    def add(self, name: str, item: T, *, by: str = "") -> None:
        """Register `item`; one of the same name that another than the module `by` registered is a `UsageError`."""
        if by and not _is_ours(by) and not self._loading and not self._has_builtins:
            self._load()  # so that a name that is taken is told of here
        if name in self._items and (not by or _is_ours(by) or self._by.get(name) != by):
            before = f", by {self._by[name]}" if self._by.get(name) else ""
            raise UsageError(f"the {self._kind} {name!r} is registered twice{before}", fix="choose another name")
        self._items[name] = item
        self._by[name] = by
        self._tell()

    def remove(self, name: str) -> None:
        """Take out what was added to the built-ins. `UsageError` for a built-in, and where there is none."""
        self[name]
        if self.is_built_in(name):
            raise UsageError(f"the {self._kind} {name!r} is built in", fix="only what was added can be taken out")
        del self._items[name]
        self._tell()

    def is_built_in(self, name: str) -> bool:
        """Whether an item came with the package."""
        return _is_ours(self._by.get(name) or _OURS)

    def when_changed(self, forget: Callable[[], None]) -> None:
        """Call `forget` whenever an item comes or goes."""
        self._changed.append(forget)

    def _tell(self) -> None:
        for forget in self._changed:
            forget()

    def get(self, name: str, default: T | None = None) -> T | None:
        """The item of that name, or `default`."""
        return self[name] if name in self else default  # noqa: SIM401 - this is `get`

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
