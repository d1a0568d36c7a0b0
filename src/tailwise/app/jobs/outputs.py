"""Names of the audits that are made and brought here: none ever replaces another."""

from __future__ import annotations

import os
import re
from pathlib import Path

_BYTES = 160  # of a name, which file systems bound at 255, with room for a number and a suffix


def words_of(name: str, otherwise: str) -> str:
    """The words of a name that a file may safely have."""
    words = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    return words.encode(errors="replace")[:_BYTES].decode(errors="ignore").strip("-.") or otherwise


def free_name(output: Path, taken: set[str]) -> Path:
    """The path, or the next like it that is neither there nor taken."""
    number, free = 2, output
    while free.exists() or str(free) in taken:
        free = output.with_name(f"{output.stem}-{number}{output.suffix}")
        number += 1
    return free


def place(written: Path, wanted: Path) -> Path:
    """Move a whole file to a free name like the wanted one; where it is now."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    while True:
        target = free_name(wanted, set())
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL, 0o666))  # the name is taken; no rename replaces another's
        except FileExistsError:
            continue
        try:
            return written.replace(target)
        except OSError:
            target.unlink(missing_ok=True)
            raise
