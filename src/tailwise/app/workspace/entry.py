"""One file of a workspace, and the name that it has in addresses."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Kind = Literal["audit", "plan", "history", "comparison", "precision", "evaluation", "unreadable"]
#: Kinds that have pages of their own; the others are rows that say what they are, and how to open them.
OWN_PAGES: tuple[Kind, ...] = ("audit", "plan")

_WORDLESS = re.compile(r"[^a-z0-9]+")


@dataclass(frozen=True)
class WorkspaceEntry:
    """A file of tailwise on disk."""

    id: str  # in addresses; the same as long as the file keeps its place
    kind: Kind
    path: Path
    title: str  # the path below its root, without the suffix
    changed: float  # seconds since the epoch
    nbytes: int

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types, without where the file lies."""
        return {"id": self.id, "kind": self.kind, "title": self.title, "changed": self.changed, "nbytes": self.nbytes}


def identity(path: Path, root: Path) -> str:
    """Words of the name, and a hash of the place below the root: the same on the next day and in a moved root."""
    place = path.relative_to(root).as_posix() if path != root else path.name
    words = _WORDLESS.sub("-", path.stem.lower()).strip("-")[:40] or "file"
    return f"{words}-{hashlib.sha256(place.encode(errors='surrogateescape')).hexdigest()[:6]}"
