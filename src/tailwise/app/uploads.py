"""Audit files from the web: bounded, looked at as if they meant harm, and only then kept."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import BinaryIO

from tailwise.app.desk import Desk
from tailwise.app.jobs.process import environment
from tailwise.app.jobs.queue import free_name
from tailwise.atomic import write_whole
from tailwise.audits.codec import MEMBERS
from tailwise.errors import UsageError
from tailwise.workspace.entry import Entry

_SECONDS = 60
_MEMORY = 4 << 30
_CHUNK = 1 << 20


def keep(desk: Desk, file: BinaryIO, name: str) -> Entry:
    """Keep an uploaded audit; its entry in the workspace. `UsageError` where it is none, or too large."""
    if desk.settings.read_only:
        raise UsageError("this server is read-only")
    if not desk.starts.allows():
        raise UsageError("too many files came within a minute", fix="wait a little")
    data = _bounded(file, desk.settings.largest_upload)
    words = re.sub(r"[^\w.-]+", "-", Path(name).stem).strip("-.")[:80] or "upload"
    staged = write_whole(desk.settings.state / "incoming" / f"{words}-{os.urandom(4).hex()}.audit", data)
    try:
        check(staged, desk.settings.largest_upload)
        target = free_name(desk.settings.state / "audits" / f"{words}.audit", set())
        write_whole(target, data, exclusive=True)
    finally:
        staged.unlink(missing_ok=True)
    return next(entry for entry in desk.workspace.look_again() if entry.path == target.resolve())


def _bounded(file: BinaryIO, most: int) -> bytes:
    parts, total = [], 0
    while chunk := file.read(_CHUNK):
        total += len(chunk)
        if total > most:
            raise UsageError(
                f"is larger than the {most / 1e6:.0f} MB that are taken", fix="copy it into a folder instead"
            )
        parts.append(chunk)
    return b"".join(parts)


def check(path: Path, most: int) -> None:
    """`UsageError` unless the file is an audit that can be read whole within bounds of time and memory."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise UsageError("is no audit file", fix="upload what `tailwise audit` wrote (.audit)") from error
    names = sorted(item.filename for item in found)
    stored = all(item.compress_type == zipfile.ZIP_STORED and item.file_size == item.compress_size for item in found)
    if names != sorted(MEMBERS) or not stored or sum(item.file_size for item in found) > most:
        raise UsageError("is no audit file", fix="upload what `tailwise audit` wrote (.audit)")
    _read_apart(path)


def _read_apart(path: Path) -> None:
    """Read it in a process of little memory: a small file can unfold into more than the machine has."""
    command = [sys.executable, "-m", "tailwise.app.reading", str(path)]
    bounds = environment() | {"TAILWISE_MEMORY": str(_MEMORY)}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, env=bounds, timeout=_SECONDS, check=False
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise UsageError("took too long to read, which no honest audit does") from None
    if done.returncode == 0:
        return
    try:
        why = str(json.loads(done.stdout)["error"])
    except (ValueError, KeyError, TypeError):
        why = "the reader ended with an error"
    raise UsageError(f"is not a readable audit: {why[:300]}", fix="upload what `tailwise audit` wrote (.audit)")
