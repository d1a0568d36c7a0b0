"""Audit files from the web: bounded, looked at as if they meant harm, and only then kept."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request

from tailwise.app.jobs.outputs import place, words_of
from tailwise.app.jobs.process import environment
from tailwise.app.page_context import PageContext
from tailwise.app.workspace.entry import WorkspaceEntry
from tailwise.core.atomic import could_not_write
from tailwise.core.errors import MALFORMED, UsageError
from tailwise.core.storage import json_of

_SECONDS = 60
_MEMORY = 4 << 30
_CHUNK = 1 << 20
_FORM = "send one as `file` of a form (multipart/form-data), and nothing else"
_STALE = 3600.0  # seconds after which an upload is one that nobody waits for


async def received(request: Request, context: PageContext) -> WorkspaceEntry:
    """Read and keep the one file of a form; its entry in the workspace.

    `UsageError` where it is no audit, or too large; and, before anything is read of it, where none is taken now.
    """
    with _turn(context):
        if not request.headers.get("content-type", "").lower().startswith("multipart/form-data"):
            raise UsageError("is no form with a file", fix=_FORM)
        await run_in_threadpool(_check_space, context)
        try:
            # A field of a form is kept in memory, however many there are; a file is spooled to disk.
            async with request.form(max_files=1, max_fields=0) as form:
                file = form.get("file")
                if not isinstance(file, UploadFile):
                    raise UsageError("no file came", fix=_FORM)
                return await run_in_threadpool(keep, context, file.file, file.filename or "upload.audit")
        except ClientDisconnect:
            raise HTTPException(400) from None
        except HTTPException as error:
            if error.status_code != 400:
                raise
            raise UsageError("is no form of one file", fix=_FORM) from error
        except OSError as error:
            raise could_not_write(error, Path(tempfile.gettempdir())) from error


@contextlib.contextmanager
def _turn(context: PageContext) -> Iterator[None]:
    context.check_writable()
    if not context.uploading.acquire(blocking=False):
        raise UsageError("another file is being uploaded", fix="wait until it is there")
    try:
        if not context.starts.allows():
            raise UsageError("too many files came within a minute", fix="wait a little")
        yield
    finally:
        context.uploading.release()


def _check_space(context: PageContext) -> None:
    audits, kept = context.settings.state / "audits", 0
    for path in audits.glob("*.audit"):
        with contextlib.suppress(OSError):  # it was removed meanwhile
            kept += path.stat().st_size
    if kept + context.settings.largest_upload > context.settings.most_kept:
        raise UsageError(f"{kept / 1e9:.1f} GB of audits are kept here, and no more are taken", where=audits,
                         fix="remove some there")  # fmt: skip


def keep(context: PageContext, file: BinaryIO, name: str) -> WorkspaceEntry:
    """Keep an uploaded audit; its entry in the workspace. `UsageError` where it is none, or too large."""
    words = words_of(Path(name.replace("\0", "")).stem, "upload")
    incoming, audits = context.settings.state / "incoming", context.settings.state / "audits"
    # With a dot, with which nothing is shown, and so read, even where the state lies below a root.
    staged = incoming / f".{words}-{os.urandom(4).hex()}.audit"
    try:
        incoming.mkdir(parents=True, exist_ok=True)
        _sweep(incoming)
        _copy(file, staged, context.settings.largest_upload)
        check(staged, context.settings.largest_upload)
        target = place(staged, audits / f"{words}.audit").resolve()
    except OSError as error:
        raise could_not_write(error, audits) from error
    finally:
        staged.unlink(missing_ok=True)
    listed = next((entry for entry in context.workspace.look_again() if entry.path == target), None)
    if listed is None:
        raise UsageError(f"it is kept as {target}, which is below no folder that this was started with")
    return listed


def _sweep(incoming: Path) -> None:
    """Remove what a server that was killed left."""
    for path in incoming.iterdir():
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE:
                path.unlink()


def _copy(file: BinaryIO, target: Path, most: int) -> None:
    total = 0
    with target.open("xb") as sink:
        while chunk := file.read(_CHUNK):
            total += len(chunk)
            if total > most:
                raise UsageError(
                    f"is larger than the {most / 1e6:.0f} MB that are taken", fix="copy it into a folder instead"
                )
            sink.write(chunk)


def check(path: Path, most: int) -> None:
    """`UsageError` unless the file is an audit that can be read whole within bounds of time and memory.

    It is read in a process of little memory: a small file can unfold into more than the machine has.
    """
    command = [sys.executable, "-P", "-m", "tailwise.app.reading", str(path), str(most)]
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
        why = str(json_of(done.stdout)["error"])
    except MALFORMED:
        why = "the reader ended with an error"
    raise UsageError(f"is not a readable audit: {why[:300]}", fix="upload what `tailwise audit` wrote (.audit)")
