"""How long a search may take, how long it has taken, and its end where it is interrupted."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

from tailwise.core.errors import UsageError

#: What ends a search early: Ctrl-C, and what schedulers send before they kill.
_ENDING = (signal.SIGINT, signal.SIGTERM)


@dataclass(frozen=True)
class Clock:
    """A budget of time that runs from when it is made.

    `read` is what it is counted in: by default time on the wall; `time.process_time` makes what a search reaches
    the same however busy the machine is.
    """

    seconds: float
    read: Callable[[], float] = time.monotonic
    began: float = field(init=False)
    ended: threading.Event = field(default_factory=threading.Event, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not math.isfinite(self.seconds) or self.seconds <= 0:
            raise UsageError(f"a time budget of {self.seconds:g} s", fix="give more than zero to --budget")
        object.__setattr__(self, "began", self.read())

    @property
    def spent(self) -> float:
        """Seconds since it was made."""
        return self.read() - self.began

    @property
    def left(self) -> float:
        """Seconds until it is over; below 0 after that."""
        return -math.inf if self.stopped else self.seconds - self.spent

    @property
    def share(self) -> float:
        """The part of the budget that is spent, at most 1."""
        return 1.0 if self.stopped else min(1.0, self.spent / self.seconds)

    @property
    def stopped(self) -> bool:
        """Whether it was ended before its time."""
        return self.ended.is_set()

    def stop(self) -> None:
        """End it now, and every part of it."""
        self.ended.set()

    def part(self, share: float) -> Clock:
        """A clock for a share of what is left, and never for nothing."""
        return Clock(max(self.left * share, 1e-6), self.read, self.ended)


@contextmanager
def stopped_by_interrupts(clock: Clock, tell: Callable[[], None]) -> Iterator[None]:
    """Within, the first interruption stops the clock and calls `tell`; a second one does what it always did.

    Only where signals come, in the main thread, and where nobody else has a handler for them.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    usual = {number: signal.getsignal(number) for number in _ENDING}
    ours = [number for number in _ENDING if usual[number] in (signal.default_int_handler, signal.SIG_DFL)]

    def give_back() -> None:
        for number in ours:
            signal.signal(number, usual[number])

    def ending(_number: int, _frame: FrameType | None) -> Any:
        give_back()
        clock.stop()
        tell()

    for number in ours:
        signal.signal(number, ending)
    try:
        yield
    finally:
        give_back()
