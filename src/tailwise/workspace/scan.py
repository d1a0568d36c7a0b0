"""Audits and plans below a folder, found without reading them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from tailwise.audits.codec import MEMBERS
from tailwise.workspace.entry import Entry, Kind, identity

_DEEPEST = 8
_MOST = 20_000  # files looked at below one root: a home folder given by mistake must not hang
_MOST_PLAN = 64 << 20
_SKIPPED = frozenset({"node_modules", "__pycache__", "site-packages"})


def scan(roots: tuple[Path, ...]) -> dict[str, Entry]:
    """Identity → entry of everything below the roots, the newest first."""
    found: dict[str, Entry] = {}
    seen: set[Path] = set()
    for root in roots:
        for entry in _entries(root):
            if entry.path in seen:  # one root lies within another
                continue
            seen.add(entry.path)
            name, number = entry.id, 2
            while name in found:
                name, number = f"{entry.id}-{number}", number + 1
            found[name] = replace(entry, id=name)
    return dict(sorted(found.items(), key=lambda item: (-item[1].changed, item[0])))


def _entries(root: Path) -> Iterator[Entry]:
    if root.is_file():
        yield from _entry(root, root.parent)
        return
    if _is_audit_folder(root):
        yield from _entry(root, root.parent)
        return
    seen = 0
    for folder, names, files in os.walk(root):
        here = Path(folder)
        deep = len(here.relative_to(root).parts) >= _DEEPEST
        audits = [name for name in names if _is_audit_folder(here / name)]
        names[:] = [] if deep else sorted(n for n in names if n[0] != "." and n not in _SKIPPED and n not in audits)
        for name in sorted([*audits, *files]):
            seen += 1
            if seen > _MOST:
                return
            if not name.startswith("."):
                yield from _entry(here / name, root)


def _entry(path: Path, root: Path) -> Iterator[Entry]:
    try:
        kind, facts = _kind(path), path.stat()
    except OSError:  # it went away, or may not be read
        return
    if kind is not None:
        title = path.relative_to(root).with_suffix("").as_posix()
        yield Entry(identity(path, root), kind, path, title, facts.st_mtime, _size(path, facts.st_size))


def _size(path: Path, own: int) -> int:
    return sum((path / name).stat().st_size for name in MEMBERS) if path.is_dir() else own


def _is_audit_folder(path: Path) -> bool:
    return all((path / name).is_file() for name in MEMBERS)


def _kind(path: Path) -> Kind | None:
    if path.is_dir():
        return "audit" if _is_audit_folder(path) else None
    suffix = path.suffix.lower()
    if suffix == ".audit":
        return "audit" if zipfile.is_zipfile(path) else None
    if suffix not in (".json", ".yaml", ".yml") or path.stat().st_size > _MOST_PLAN:
        return None
    with path.open("rb") as file:
        return "plan" if b"tailwise_plan" in file.read(200) else None
