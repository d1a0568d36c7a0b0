"""What watching costs on the training thread, and whether more of it is allowed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from tailwise.core.shown import Brief

Kind = Literal["cheap", "full"]


@dataclass(frozen=True, repr=False)
class MonitorReport(Brief):
    """What a monitor did, and what it cost."""

    steps: int
    seconds: float  # since the monitor was made, and had measured for the first time
    spent: float  # of these on the training thread
    setup: float  # on the training thread before the first step
    background: float  # processor time of the thread that audits
    points: int  # that were emitted
    cheap: int  # measurements taken
    full: int
    skipped: dict[str, int] = field(default_factory=dict)  # reason → how often
    errors: tuple[str, ...] = ()  # one of each kind, with how often
    alarms: int = 0
    rules: int = 0  # alarm rules that looked
    after_start: int = 0  # measurements taken after the first step

    @property
    def overhead(self) -> float:
        """Share of the training thread's time that watching took."""
        return self.spent / self.seconds if self.seconds > 0 else 0.0

    @property
    def nothing_taken(self) -> str:
        """What to say of a run of which nothing was measured, since that would have cost too much; "" otherwise."""
        count = sum(self.skipped.values())
        if self.after_start or not count:
            return ""
        return (
            f"{count} measurements were due in {self.steps} steps and none was taken, since each would have cost more "
            "than max_overhead of so short a time; max_overhead=1 takes them all"
        )

    def __str__(self) -> str:
        lines = [
            f"{self.steps} steps in {self.seconds:.1f} s; watching took {self.spent:.3f} s of it "
            f"({100 * self.overhead:.2f} %), and {self.setup:.3f} s before the first step",
            f"{self.cheap} cheap and {self.full} full measurements, {self.points} points, "
            f"{f'{self.alarms} alarms of {self.rules} rules' if self.rules else 'and no alarm rule looked'}; "
            f"{self.background:.2f} s of processor time in the background",
        ]
        lines += [f"skipped {count}×: {reason}" for reason, count in self.skipped.items()]
        lines += [self.nothing_taken] if self.nothing_taken else []
        return "\n".join([*lines, *self.errors])


class Meter:
    """Counts seconds and steps."""

    def __init__(self, clock: Callable[[], float], most: float) -> None:
        self.clock, self._most = clock, most
        self.steps, self.spent, self.setup = 0, 0.0, 0.0
        self.taken: dict[Kind, int] = {"cheap": 0, "full": 0}
        self.skipped: dict[str, int] = {}
        self.after_start = 0
        self._last: dict[Kind, float] = {}
        self._started, self._running = clock(), False

    def start(self) -> None:
        """From here on time counts; what came before was the setup."""
        self.setup, self._started, self.spent = self.clock() - self._started, self.clock(), 0.0
        self._running = True

    @property
    def seconds(self) -> float:
        """Since `start`."""
        return self.clock() - self._started

    @property
    def overhead(self) -> float:
        """Share of the time since `start`."""
        seconds = self.seconds
        return self.spent / seconds if seconds > 0 else 0.0

    def took(self, kind: Kind, seconds: float) -> None:
        """A measurement, its cost as the forecast of the next."""
        self.taken[kind] += 1
        self.after_start += self._running
        self._last[kind] = seconds

    def allows(self, kind: Kind) -> bool:
        """Whether the next measurement of a kind stays within the share that is allowed."""
        return self._most >= 1.0 or self.spent + self._last.get(kind, 0.0) <= self._most * self.seconds

    def skip(self, reason: str) -> None:
        """A measurement that was not taken."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
