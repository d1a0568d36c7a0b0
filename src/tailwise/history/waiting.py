"""What waits beside a store while it could not be written: counted, and taken in."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from tailwise.core.errors import TailwiseError
from tailwise.history.connect import is_url, plain
from tailwise.history.queued import take_over
from tailwise.history.spool import SUFFIX, Spool, folder_for
from tailwise.history.store import History


@dataclass(frozen=True)
class Waiting:
    """What became of the lines that waited beside a store."""

    folder: Path
    taken: int = 0  # that are in the store now
    left: int = 0  # that still wait: their writer lives, or the store cannot be written just now
    why: str = ""  # the store could not be written

    def __str__(self) -> str:
        parts = [f"{self.taken} that waited in {self.folder} were taken in"] if self.taken else []
        why = self.why or "the process that writes them is still there, and brings them in"
        parts += [f"{self.left} points and alarms wait in {self.folder}: {why}"] if self.left else []
        return "; ".join(parts)


def take_in(where: str | os.PathLike[str], patience: float = 2.0) -> Waiting:
    """Bring what dead processes left beside a store into it, and count what has to wait. Raises nothing of the store.

    `patience` is how many seconds another process that writes is waited for.
    """
    address = plain(where)
    url = is_url(address)
    folder = folder_for(address if url else str(Path(address).expanduser()), url)
    if not any(folder.glob(f"*{SUFFIX}")):
        return Waiting(folder)
    left, taken, why = Spool.left_behind(folder), 0, ""
    try:
        if any(spool.lines for spool in left):
            with History(address, patience=patience) as history:
                for spool in left:
                    taken += spool.lines - history.taken_over(spool.key)
                    take_over(history, spool)
    except TailwiseError as error:
        why = error.what
    finally:
        for spool in left:
            spool.close()
    return Waiting(folder, taken if not why else 0, _lines(folder), why)


def _lines(folder: Path) -> int:
    count = 0
    for path in folder.glob(f"*{SUFFIX}"):
        with suppress(OSError), path.open("rb") as file:
            count += sum(1 for _ in file)
    return count
