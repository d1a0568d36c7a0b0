"""The files of tailwise below a folder, found by their first bytes."""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path

from tailwise.app.workspace.entry import Kind, WorkspaceEntry, identity
from tailwise.audits.codec import MEMBERS
from tailwise.core.archives import is_archive
from tailwise.history.bounded import BoundedWork

_DEEPEST = 8
_MOST = 100_000  # files and folders named below one root: a home folder given by mistake must not hang
_MOST_PLAN = 64 << 20
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages"})
_PLANS = (".json", ".yaml", ".yml")
_STORES = (".db", ".sqlite", ".sqlite3")
_WANTED = (".audit", *_PLANS, *_STORES)
#: What begins the JSON of evaluations, of a precision study and of a comparison.
_EVALUATIONS = (b'"kind": "scores"', b'"kind": "score comparison"')
_STUDY, _COMPARISON = b'"kind": "precision study"', (b'"before":', b'"after":', b'"layers":')

#: What tells one state of a file from the next.
_State = tuple[int, int, int, int]
_Known = dict[tuple[str, Path], tuple[_State, WorkspaceEntry | None]]


@dataclass
class Scanner:
    """Looks below some roots, again and again; a file that did not change is not opened twice.

    What lies elsewhere is not shown, even if a link below a root leads there.
    """

    roots: tuple[Path, ...]
    cut: tuple[Path, ...] = ()  # roots that hold more than is looked at, as of the last look
    _known: _Known = field(default_factory=dict)

    def scan(self) -> dict[str, WorkspaceEntry]:
        """Identity → entry of everything below the roots, the newest first."""
        entries: dict[str, WorkspaceEntry] = {}
        before, self._known, self.cut = self._known, {}, ()
        seen: set[Path] = set()
        for root in self.roots:
            for entry in self._entries(root, before):
                if entry.path in seen:  # one root lies within another
                    continue
                seen.add(entry.path)
                name, number = entry.id, 2
                while name in entries:
                    name, number = f"{entry.id}-{number}", number + 1
                entries[name] = replace(entry, id=name)
        return dict(sorted(entries.items(), key=lambda item: (-item[1].changed, item[0])))

    def _entries(self, root: Path, before: _Known) -> Iterator[WorkspaceEntry]:
        for number, (path, below) in enumerate(_paths(root)):
            if number >= _MOST:
                self.cut = (*self.cut, root)
                return
            if not path:
                continue
            try:
                entry = self._entry(path, below, before)
            except (OSError, RuntimeError):  # it went away, may not be read, or is a link to itself
                continue
            if entry is not None:
                yield entry

    def _entry(self, path: str, below: Path, before: _Known) -> WorkspaceEntry | None:
        facts = os.lstat(path)
        if stat.S_ISLNK(facts.st_mode):
            if not self._holds(Path(path).resolve()):
                return None
            facts = os.stat(path)  # noqa: PTH116 - of a hundred thousand files, a second faster than by pathlib
        if stat.S_ISDIR(facts.st_mode) and not all(self._holds(Path(path, name).resolve()) for name in MEMBERS):
            return None
        state = (facts.st_mtime_ns, facts.st_size, facts.st_ino, facts.st_mode)
        known = before.get((path, below))
        if known is None or known[0] != state or stat.S_ISDIR(facts.st_mode):
            known = (state, _entry(Path(path), below, facts))
        self._known[path, below] = known
        return known[1]

    def _holds(self, real: Path) -> bool:
        return any(real == root or root in real.parents for root in self.roots)


def _paths(root: Path) -> Iterator[tuple[str, Path]]:
    """What may be an audit or a plan, with the folder that its title starts at; no path for every other file."""
    if root.is_file() or _is_audit_folder(str(root)):
        yield str(root), root.parent
        return
    for here, names, files in os.walk(root):
        deep = len(Path(here).relative_to(root).parts) >= _DEEPEST
        audits = {name for name in names if _is_audit_folder(f"{here}/{name}")}
        names[:] = [] if deep else sorted(n for n in names if n[0] != "." and n not in _SKIPPED and n not in audits)
        for name in sorted([*audits, *files]):
            fits = name[0] != "." and (name.lower().endswith(_WANTED) or name in audits)
            yield (f"{here}/{name}" if fits else ""), root


def _entry(path: Path, root: Path, stat: os.stat_result) -> WorkspaceEntry | None:
    kind = _kind(path, stat)
    if kind is None:
        return None
    place = path.relative_to(root).with_suffix("").as_posix()
    # A name on disk may hold bytes that are no text, which no page could show.
    title = place.encode(errors="surrogateescape").decode(errors="replace")
    return WorkspaceEntry(identity(path, root), kind, path, title, stat.st_mtime, _size(path, stat.st_size))


def _size(path: Path, own: int) -> int:
    return sum((path / name).stat().st_size for name in MEMBERS) if path.is_dir() else own


def _is_audit_folder(path: str) -> bool:
    # Not `Path.is_file`, which raises for a folder that may not be looked into.
    return all(os.path.isfile(f"{path}/{name}") for name in MEMBERS)  # noqa: PTH113


def _kind(path: Path, facts: os.stat_result) -> Kind | None:
    if stat.S_ISDIR(facts.st_mode):
        return "audit" if _is_audit_folder(str(path)) else None
    if not stat.S_ISREG(facts.st_mode):  # to open a pipe is to wait for who writes to it
        return None
    suffix = path.suffix.lower()
    if suffix == ".audit":
        return "audit" if is_archive(path) else "unreadable"
    if suffix in _STORES:
        return "history" if is_history(path) else None
    return _kind_of_text(path) if facts.st_size <= _MOST_PLAN else None


def _kind_of_text(path: Path) -> Kind | None:
    with path.open("rb") as file:
        head = file.read(400)
    if b"tailwise_plan" in head[:200]:
        return "plan"
    if path.suffix.lower() != ".json":
        return None
    if any(part in head for part in _EVALUATIONS):
        return "evaluation"
    return "precision" if _STUDY in head else "comparison" if all(part in head for part in _COMPARISON) else None


def is_history(path: Path) -> bool:
    """Whether a file is SQLite with the tables of a history; it is opened for reading alone."""
    with path.open("rb") as file:
        if file.read(16) != b"SQLite format 3\x00":
            return False
    try:
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True, timeout=0.2)) as store:
            BoundedWork(store, path, grows=False)
            tables = {name for (name,) in store.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.Error:
        return False
    return {"tailwise_runs", "tailwise_points"} <= tables
