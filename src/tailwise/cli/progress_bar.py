"""Progress of an audit: a bar of bytes, matrices and time left for people, or lines of JSON for programs."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tailwise.core.harmless import one_line, shortened

if TYPE_CHECKING:
    from rich.progress import Progress

    from tailwise.audits.run import Step


#: What is worth stopping for: the rest waits for the table.
_AT_ONCE = ("NOT_FINITE", "FAILED", "UNREADABLE")


class Show:
    """Takes an audit's steps and moves the bar; what went wrong with a matrix is said as soon as it is known."""

    def __init__(self, bar: Progress, line: NowAndThen) -> None:
        self._bar, self._line = bar, line
        self.step: Step | None = None
        self._task = bar.add_task("", total=None, detail="")

    def __call__(self, step: Step) -> None:
        """Move on."""
        from rich.filesize import decimal

        self.step = step
        if step.row is not None and step.row.status in _AT_ONCE:
            line = f"tailwise: {shortened(one_line(step.row.name), 200)}: {one_line(step.row.reason)}"
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        self._line(f"{step.done} of {step.total} matrices", step.flops_done / max(step.flops_total, 1.0))
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


#: Of all, what must be done before the time that is left is estimated: the first part also loads what the rest has.
_ENOUGH = 0.1
_EQUAL = 3  # things of one kind behind the first, which is not counted, that tell how long the others take


class NowAndThen:
    """What is being done and how much of it, as a line of text with the time that is left at this rate."""

    def __init__(self, read: Callable[[], float] = time.monotonic, starting: str = "starting") -> None:
        self._read, self._began, self._said = read, read(), (starting, 0.0)
        self._counted: tuple[float, float] | None = None  # when the first of equal things was done, and its share
        self._enough = _ENOUGH

    def __call__(self, what: str, share: float) -> None:
        """Take note of it; `share` is of all, from 0 to 1. Another thing that begins at 0 has a time of its own."""
        if share < self._said[1]:
            self._began = self._read()
        self._said = (what, share)

    def count(self, what: str, done: int, total: int) -> None:
        """The same of things that take alike long: a few tell how long all take, without what came before them."""
        share = done / total if total else 1.0
        self(what, share)
        if self._counted is None or share <= self._counted[1]:
            self._counted, self._enough = (self._read(), share), share + _EQUAL / max(total, 1)

    def line(self) -> str:
        """The line, of now."""
        (what, share), now = self._said, self._read()
        since, of = self._counted or (self._began, 0.0)
        left = ""
        if self._enough <= share < 1:
            left = f", about {clock_words((now - since) / (share - of) * (1 - share))} left"
        return f"{100 * share:3.0f} % after {clock_words(now - self._began)}{left}: {what}"


def clock_words(seconds: float) -> str:
    """`45 s`, `3:20 min`, `2:05 h`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"


@contextmanager
def now_and_then(*, quiet: bool, every: float = 30.0, starting: str = "starting") -> Iterator[NowAndThen]:
    """A line on stderr every `every` seconds while the block runs, also where nothing moves; none where `quiet`."""
    told, ended = NowAndThen(starting=starting), threading.Event()
    stream = sys.stderr  # also while a library that is loaded has its own held back

    def tell() -> None:
        while not ended.wait(every):
            stream.write(f"tailwise: {told.line()}\n")
            stream.flush()

    thread = threading.Thread(target=tell, name="tailwise-progress", daemon=True)
    if not quiet:
        thread.start()
    try:
        yield told
    finally:
        ended.set()


def last_part(name: str) -> str:
    """A model at a place, by the last part of it."""
    return Path(name).name


@contextmanager
def counted(label: Callable[[str], str] = str, starting: str = "starting") -> Iterator[Callable[[str, int, int], None]]:
    """Takes what is done, how much of it and how much in all: a bar on stderr for each, which leaves nothing behind.

    Where that is no terminal, a line now and then; `starting` is what it says before anything is done.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[amount]}"),
               TimeRemainingColumn())  # fmt: skip
    bars: dict[str, Any] = {}
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown(bar), now_and_then(quiet=console.is_terminal, starting=starting) as line:

        def show(what: str, done: int, total: int) -> None:
            if total == 1 and not console.is_terminal:  # over before a line now and then would tell of it
                console.print(f"tailwise: {label(what)}", markup=False, highlight=False, soft_wrap=True)
            if what not in bars:
                bars[what] = bar.add_task(label(what), total=total, amount="")
            bar.update(bars[what], completed=done, amount=f"{done:,}/{total:,}")
            line.count(f"{label(what)}, {done:,} of {total:,}", done, total)

        yield show


@contextmanager
def shares(label: str = "") -> Iterator[Callable[[str, float], None]]:
    """Takes what is done and how much of all, from 0 to 1: a bar on stderr that leaves nothing behind.

    Where that is no terminal, a line now and then.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TimeRemainingColumn(),
               TextColumn("{task.description}"))  # fmt: skip
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with shown(bar), now_and_then(quiet=console.is_terminal, starting=label or "starting") as line:
        task = bar.add_task(label, total=1.0)

        def say(what: str, share: float) -> None:
            bar.update(task, description=what, completed=share)
            line(what, share)

        yield say


@contextmanager
def progress_bar() -> Iterator[Show]:
    """A bar on stderr while the block runs; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (BarColumn(), TextColumn("{task.percentage:>3.0f} %"), TextColumn("{task.fields[detail]}"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with shown(bar), now_and_then(quiet=console.is_terminal, starting="reading the first matrices") as line:
        yield Show(bar, line)
