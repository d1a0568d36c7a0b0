"""Progress of an audit: a bar of bytes, matrices and time left for people, or lines of JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress

    from tailwise.audits.run import Step


class Show:
    """Takes an audit's steps and moves the bar."""

    def __init__(self, bar: Progress) -> None:
        self._bar = bar
        self.step: Step | None = None
        self._task = bar.add_task("", total=None, detail="")

    def __call__(self, step: Step) -> None:
        """Move on."""
        from rich.filesize import decimal

        self.step = step
        detail = f"{step.done}/{step.total} matrices  {decimal(step.bytes_done)} of {decimal(step.bytes_total)}"
        # Work, not bytes, decides the time: a square matrix costs far more per byte than a flat one.
        self._bar.update(self._task, completed=step.flops_done, total=step.flops_total, detail=detail)


class Tell:
    """Writes an audit's steps as lines of JSON on stderr."""

    def __init__(self) -> None:
        self.step: Step | None = None

    def __call__(self, step: Step) -> None:
        """Write one line."""
        self.step = step
        progress = {name: getattr(step, name) for name in ("done", "total", "bytes_done", "bytes_total", "flops_done",
                                                           "flops_total")}  # fmt: skip
        line = {"progress": {**progress, "matrix": None if step.row is None else step.row.name}}
        sys.stderr.write(json.dumps(line) + "\n")
        sys.stderr.flush()


@contextmanager
def shown(bar: Progress) -> Iterator[Progress]:
    """The bar while the block runs. One that is disabled is not begun: some versions of rich end it with a line."""
    with nullcontext() if bar.disable else bar:
        yield bar


@contextmanager
def progress_bar() -> Iterator[Show]:
    """A bar on stderr while the block runs; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[detail]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with shown(bar):
        yield Show(bar)
