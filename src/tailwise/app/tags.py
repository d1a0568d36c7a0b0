"""Words that people give to audits."""

from __future__ import annotations

import json
import re
import threading
from pathlib import Path

from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.core.atomic import write_whole
from tailwise.core.errors import MALFORMED, UsageError
from tailwise.core.storage import json_of

_TAG = re.compile(r"[\w.:+-]{1,40}")
_MOST = 20


class Tags:
    """Tags by the place of the file, in one small file of the state."""

    def __init__(self, folder: Path) -> None:
        self._path, self._lock = folder / "tags.json", threading.Lock()

    def of(self, entry: WorkspaceEntry) -> tuple[str, ...]:
        """The tags of one entry."""
        return self.all().get(str(entry.path), ())

    def all(self) -> dict[str, tuple[str, ...]]:
        """Path → tags."""
        try:
            document = json_of(self._path.read_text(encoding="utf-8"))
            return {str(path): tuple(map(str, tags)) for path, tags in document.items()}
        except (*MALFORMED, OSError):
            return {}

    def put(self, entry: WorkspaceEntry, text: str) -> tuple[str, ...]:
        """Replace the tags of an entry by the words of a text. `UsageError` for what is no tag."""
        tags = tuple(dict.fromkeys(re.split(r"[\s,]+", text.strip()))) if text.strip() else ()
        for tag in tags:
            if not _TAG.fullmatch(tag):
                raise UsageError(f"{tag[:60]!r} is no tag", fix="use letters, digits and . : + - _, 40 at most")
        if len(tags) > _MOST:
            raise UsageError(f"{len(tags)} tags are too many", fix=f"give at most {_MOST}")
        with self._lock:
            every = self.all()
            every[str(entry.path)] = tags
            document = {path: list(tags) for path, tags in every.items() if tags}
            # ASCII, with escapes: a path may hold bytes that are no text.
            write_whole(self._path, json.dumps(document, indent=1).encode())
        return tags
