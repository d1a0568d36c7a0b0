"""How long a search may take, and how long it has taken."""

from __future__ import annotations

import math
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
        return self.seconds - self.spent

    @property
    def share(self) -> float:
        """The part of the budget that is spent, at most 1."""
        return min(1.0, self.spent / self.seconds)

    def part(self, share: float) -> Clock:
        """A clock for a share of what is left, and never for nothing."""
        return Clock(max(self.left * share, 1e-6), self.read)
