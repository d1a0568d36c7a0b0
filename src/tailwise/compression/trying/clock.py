"""How long a search may take, and how long it has taken."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from tailwise.core.errors import UsageError


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
