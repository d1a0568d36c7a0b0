"""The writer for an address. A file of lines needs no database, and so no SQLAlchemy."""

from __future__ import annotations

import os
from typing import Protocol

from tailwise.history.jsonl import Item, JsonlHistory


class Writer(Protocol):
    """What a monitor writes to."""

    def write(self, item: Item) -> None:
        """Keep a point or an alarm; never raises."""

    def close(self) -> None:
        """Write what waits, if that can be, and let go."""


def open_writer(where: str | os.PathLike[str], *, spool: str | os.PathLike[str] | None = None) -> Writer:
    """Lines for `x.jsonl`, else a store that waits for its database in a file, in the folder `spool`."""
    if os.fspath(where).endswith(".jsonl"):
        return JsonlHistory(where)
    from tailwise.history.queued import QueuedHistory

    return QueuedHistory(where, spool)
