"""`Workspace`: everything that pages and answers are made of, by name."""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING, Any, TypeVar

from cachetools import LRUCache, cached

from tailwise.app.workspace.entry import OWN_PAGES, Kind, WorkspaceEntry
from tailwise.app.workspace.scan import Scanner
from tailwise.audits.audit import Audit
from tailwise.core.errors import TailwiseError, UnreachableError, UnreadableError, UsageError, unknown_name

if TYPE_CHECKING:
    from tailwise.compression.plans.plan import Plan
    from tailwise.history.store import History
    from tailwise.judging.compare.comparison import Comparison
    from tailwise.judging.diagnosis.finding import Diagnosis


Value = TypeVar("Value")
_log = logging.getLogger(__name__)

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


_FRESH = 1.0  # seconds for which a scan holds
_PATIENCE = 5.0  # seconds that a store is waited for
_REST = 5.0  # seconds for which one that could not be reached is taken to be away
_SLOW = 5.0  # times its own length, for one that took long


class Workspace:
    """Audits and plans below some folders, and a store of training runs. May be used by several threads.

    >>> workspace = Workspace(["."])
    >>> [entry.id for entry in workspace.entries("audit")]  # nothing lies here yet
    []

    What was read is kept until its file changes.
    """

    def __init__(self, roots: Sequence[str | Path], *, store: str | None = None, example: Path | None = None) -> None:
        """Take folders, or single files, the address of a store (`tailwise watch`), and an audit to click through.

        The example is found by its identity and stands in no list.

        Raises `UsageError` for a root that is not there.
        """
        self.roots = tuple(Path(root).expanduser().resolve() for root in roots)
        for root in self.roots:
            if not root.exists():
                raise UsageError("there is no such file or folder", where=root, fix="give a folder with audits")
        self.store = store
        self._example = None if example is None else example.resolve()
        looked_at = self.roots if self._example is None else (*self.roots, self._example)
        self._scanner, self._scanning = Scanner(looked_at), threading.Lock()
        self._found: dict[str, WorkspaceEntry] | None = None
        self._scanned, self._took = 0.0, 0.0  # when the last look ended, and how long it took
        self._kept = AuditMemory()
        # A lock of its own: whoever waits for a store that does not answer keeps nobody from the audits.
        self._connecting = threading.Lock()
        self._comparing = threading.Semaphore(1)
        self._history: History | None = None
        self._refused: tuple[float, UnreachableError] | None = None

    # What there is

    def entries(self, kind: Kind | None = None) -> list[WorkspaceEntry]:
        """Everything of a kind, or all audits and plans, the newest first."""
        wanted = OWN_PAGES if kind is None else (kind,)
        return [entry for entry in self._scan().values() if entry.kind in wanted and entry.path != self._example]

    @property
    def example(self) -> str:
        """The identity of the example; "" where there is none."""
        return next((entry.id for entry in self._scan().values() if entry.path == self._example), "")

    def others(self) -> list[WorkspaceEntry]:
        """What is neither an audit nor a plan: histories, comparisons, studies, evaluations, what cannot be read."""
        return [entry for entry in self._scan().values() if entry.kind not in OWN_PAGES]

    @property
    def state(self) -> str:
        """Another text whenever a file came, went or changed."""
        state = sorted((entry.id, entry.changed, entry.nbytes) for entry in self._scan().values())
        return hashlib.sha256(repr(state).encode()).hexdigest()[:16]

    def entry(self, name: str, kind: Kind | None = None) -> WorkspaceEntry:
        """The entry of that identity. `UsageError` with near names otherwise."""
        listed = self._scan().get(name)
        # It may be new; but names that nothing has must not keep a slow disk busy.
        if listed is None and time.monotonic() - self._scanned > self._took:
            listed = self._scan(again=True).get(name)
        if listed is None or kind not in (None, listed.kind):
            raise unknown_name(kind or "file", name, (entry.id for entry in self.entries(kind)))
        return listed

    def look_again(self) -> list[WorkspaceEntry]:
        """The same, without waiting for the last look to be old."""
        self._scan(again=True)
        return self.entries()

    @property
    def cut(self) -> tuple[Path, ...]:
        """Roots that hold so many files that some were not looked at."""
        return self._scanner.cut

    def _scan(self, *, again: bool = False) -> dict[str, WorkspaceEntry]:
        entries = self._found
        if entries is not None and not again and self._is_fresh():
            return entries
        # While another thread looks, what was there a moment ago is good enough.
        if not self._scanning.acquire(blocking=again or entries is None):
            return entries or {}
        try:
            if self._found is None or again or not self._is_fresh():
                began = time.monotonic()
                self._found = self._scanner.scan()
                self._scanned = time.monotonic()
                self._took = self._scanned - began
            return self._found
        finally:
            self._scanning.release()

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._scanned <= max(_FRESH, _SLOW * self._took)

    def confined(self, path: str | Path) -> Path:
        """A path that is one of the roots or lies below one, all links followed. `UsageError` for any other."""
        for candidate in self._candidates(path):
            try:
                real = candidate.resolve()
                if any(real == root or root in real.parents for root in self.roots) and real.exists():
                    return real
            except (OSError, RuntimeError, ValueError):  # too long, in a circle, or with a zero byte
                continue
        raise UsageError("is not below a folder that this was started with", where=path,
                         fix="give a path below " + " or ".join(map(str, self.roots)))  # fmt: skip

    def _candidates(self, path: str | Path) -> list[Path]:
        try:
            given = Path(path).expanduser()
        except RuntimeError:  # the home of a user that there is not
            given = Path(path)
        return [given] if given.is_absolute() else [root / given for root in self._folders()]

    def _folders(self) -> list[Path]:
        return [root if root.is_dir() else root.parent for root in self.roots]

    # What it says

    def audit(self, name: str) -> Audit:
        """The audit of that identity."""
        entry = self.entry(name, "audit")
        return self._kept.get(("audit", *_stamp(entry)), lambda: _read(entry, Audit.load), entry.nbytes)

    def diagnosis(self, name: str) -> Diagnosis:
        """What the rules say of an audit."""
        from tailwise.judging.diagnosis.diagnose import diagnose

        entry = self.entry(name, "audit")
        return self._kept.get(("diagnosis", *_stamp(entry)), lambda: diagnose(self.audit(name)))

    def comparison(self, before: str, after: str, level: float = 0.05) -> Comparison:
        """What changed from one audit to another, at a false discovery rate.

        One at a time is made of other rates than the usual: there are as many as anyone likes, and each takes seconds
        of a large model. `UsageError` meanwhile.
        """
        from tailwise.judging.compare.compare_audits import compare

        one, other = self.entry(before, "audit"), self.entry(after, "audit")
        usual = level == 0.05

        def make() -> Comparison:
            if not usual and not self._comparing.acquire(blocking=False):
                raise UsageError("another comparison is being made", fix="ask again in a moment")
            try:
                return compare(self.audit(before), self.audit(after), level=level)
            finally:
                if not usual:
                    self._comparing.release()

        key = ("comparison", level, *_stamp(one), *_stamp(other))
        return self._kept.get(key, make, one.nbytes + other.nbytes)

    def plan(self, name: str) -> Plan:
        """The plan of that identity."""
        from tailwise.compression.plans.plan import Plan

        entry = self.entry(name, "plan")
        return self._kept.get(("plan", *_stamp(entry)), lambda: _read(entry, Plan.load), entry.nbytes)

    @property
    def history(self) -> History:
        """The store of training runs. `UsageError` where none was given."""
        if self.store is None:
            raise UsageError("no store of training runs was given", fix="add --store history.db, see `tailwise watch`")
        with self._connecting:
            if self._history is None:
                self._history = self._connected(self.store)
            return self._history

    def _connected(self, store: str) -> History:
        from tailwise.history.store import History

        # Who asks while a store is away must not wait for it one after the other.
        if self._refused is not None and time.monotonic() - self._refused[0] < _REST:
            known = self._refused[1]
            raise UnreachableError(known.what, where=known.where, fix=known.fix)
        try:
            return History(store, create=False, patience=_PATIENCE)
        except UnreachableError as error:
            self._refused = (time.monotonic(), error)
            raise

    def keep(self, name: str, key: Hashable, make: Callable[[], Value]) -> Value:
        """What `make` makes of an entry, kept until the file changes."""
        entry = self.entry(name)
        return self._kept.get((key, *_stamp(entry)), make, entry.nbytes)

    def close(self) -> None:
        """Close the store."""
        with self._connecting:
            if self._history is not None:
                self._history.close()
                self._history = None


def _read(entry: WorkspaceEntry, load: Callable[[Path], Value]) -> Value:
    """What a file holds; `UnreadableError` whatever else went wrong, so that lists show the others."""
    try:
        return load(entry.path)
    except (TailwiseError, MemoryError):
        raise
    except Exception as error:
        _log.warning("%s cannot be read", entry.path, exc_info=True)
        raise UnreadableError(f"cannot be read ({type(error).__name__})", where=entry.path) from error


def _stamp(entry: WorkspaceEntry) -> tuple[Hashable, ...]:
    return entry.path, entry.changed, entry.nbytes
