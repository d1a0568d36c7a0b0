"""`Workspace`: everything that pages and answers are made of, by name."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from tailwise.audits.audit import Audit
from tailwise.errors import UsageError, unknown_name
from tailwise.workspace.entry import Entry, Kind
from tailwise.workspace.scan import scan

if TYPE_CHECKING:
    from tailwise.compare.comparison import Comparison
    from tailwise.compression.plans.plan import Plan
    from tailwise.diagnosis.finding import Diagnosis
    from tailwise.history.store import History

Value = TypeVar("Value")

_FRESH = 1.0  # seconds for which a scan holds
_KEPT = 256  # things in memory: audits, diagnoses, comparisons, plans


class Workspace:
    """Audits and plans below some folders, and a store of training runs. May be used by several threads.

    >>> workspace = Workspace(["."])
    >>> [entry.id for entry in workspace.entries("audit")]

    What was read is kept until its file changes.
    """

    def __init__(self, roots: Sequence[str | Path], *, store: str | None = None) -> None:
        """Take folders, or single files, and the address of a store (`tailwise watch`).

        Raises `UsageError` for a root that is not there.
        """
        self.roots = tuple(Path(root).expanduser().resolve() for root in roots)
        for root in self.roots:
            if not root.exists():
                raise UsageError("there is no such file or folder", where=root, fix="give a folder with audits")
        self.store = store
        self._lock = threading.RLock()
        self._scanned, self._found = -_FRESH, dict[str, Entry]()
        self._kept: OrderedDict[Hashable, object] = OrderedDict()
        self._history: History | None = None

    # What there is

    def entries(self, kind: Kind | None = None) -> list[Entry]:
        """All audits, plans or both, the newest first."""
        return [entry for entry in self._scan().values() if kind in (None, entry.kind)]

    def entry(self, name: str, kind: Kind | None = None) -> Entry:
        """The entry of that identity. `UsageError` with near names otherwise."""
        found = self._scan().get(name) or self._scan(again=True).get(name)
        if found is None or kind not in (None, found.kind):
            raise unknown_name(kind or "file", name, (entry.id for entry in self.entries(kind)))
        return found

    def look_again(self) -> list[Entry]:
        """The same, without waiting for the last look to be old."""
        return list(self._scan(again=True).values())

    def _scan(self, *, again: bool = False) -> dict[str, Entry]:
        with self._lock:
            if again or time.monotonic() - self._scanned > _FRESH:
                self._found, self._scanned = scan(self.roots), time.monotonic()
            return self._found

    def confined(self, path: str | Path) -> Path:
        """A path that lies below one of the roots, all links followed. `UsageError` for any other."""
        given = Path(path).expanduser()
        candidates = [given] if given.is_absolute() else [root / given for root in self._folders()]
        for candidate in candidates:
            real = candidate.resolve()
            if any(real == root or root in real.parents for root in self._folders()) and real.exists():
                return real
        raise UsageError("is not below a folder that this was started with", where=path,
                         fix="give a path below " + " or ".join(map(str, self._folders())))  # fmt: skip

    def _folders(self) -> list[Path]:
        return [root if root.is_dir() else root.parent for root in self.roots]

    # What it says

    def audit(self, name: str) -> Audit:
        """The audit of that identity."""
        entry = self.entry(name, "audit")
        return self._keep(("audit", *_stamp(entry)), lambda: Audit.load(entry.path))

    def diagnosis(self, name: str) -> Diagnosis:
        """What the rules say of an audit."""
        from tailwise.diagnosis.run import diagnose

        entry = self.entry(name, "audit")
        return self._keep(("diagnosis", *_stamp(entry)), lambda: diagnose(self.audit(name)))

    def comparison(self, before: str, after: str) -> Comparison:
        """What changed from one audit to another."""
        from tailwise.compare.run import compare

        stamps = (*_stamp(self.entry(before, "audit")), *_stamp(self.entry(after, "audit")))
        return self._keep(("comparison", *stamps), lambda: compare(self.audit(before), self.audit(after)))

    def plan(self, name: str) -> Plan:
        """The plan of that identity."""
        from tailwise.compression.plans.plan import Plan

        entry = self.entry(name, "plan")
        return self._keep(("plan", *_stamp(entry)), lambda: Plan.load(entry.path))

    @property
    def history(self) -> History:
        """The store of training runs. `UsageError` where none was given."""
        from tailwise.history.store import History

        if self.store is None:
            raise UsageError("no store of training runs was given", fix="add --store history.db, see `tailwise watch`")
        with self._lock:
            if self._history is None:
                self._history = History(self.store, create=False)
            return self._history

    def keep(self, name: str, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` makes of an entry, kept until the file changes."""
        return self._keep((key, *_stamp(self.entry(name))), make)

    def _keep(self, key: Hashable, make: Callable[[], Value]) -> Value:
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]  # type: ignore[return-value]
        value = make()  # outside the lock: a large audit must not stop who reads another
        with self._lock:
            self._kept[key] = value
            while len(self._kept) > _KEPT:
                self._kept.popitem(last=False)
        return value

    def close(self) -> None:
        """Close the store."""
        with self._lock:
            if self._history is not None:
                self._history.close()
                self._history = None


def _stamp(entry: Entry) -> tuple[Hashable, ...]:
    return entry.path, entry.changed, entry.nbytes
