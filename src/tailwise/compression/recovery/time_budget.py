"""The time that a recovery may take, from the first thing read to the last thing scored."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

Value = TypeVar("Value")

_WRITING = 1.0  # times the seconds that reading the model takes
#: Reading a model again takes no longer than this (the first time, libraries are read too): seconds, bytes a second.
_AGAIN = (2.0, 5e7)
_ENDED = 1.05  # of the budget: where the control is ended wherever it is,
_SPARE = 0.95  # and of the time to train, what is planned with, since the control must have as many steps
_MEASURING = 0.3  # of the budget, at most, for all passes over what quality is measured on
_LOOK = 0.02  # of the budget, at most, for one look at what the best state is chosen by
_SAID = 1.15  # of the budget: from where on it is told


@dataclass
class TimeBudget:
    """Seconds for everything, counted from `began`, a time of `read`."""

    seconds: float
    read: Callable[[], float] = time.monotonic
    began: float = field(default=-1.0)
    reading: float = 0.0  # seconds that reading the pruned model took,
    scoring: float = 0.0  # scoring it,
    control: tuple[float, float] = (0.0, 0.0)  # and the same of the control

    def __post_init__(self) -> None:
        if self.began < 0:
            self.began = self.read()

    def know_size(self, nbytes: int) -> None:
        """What reading the model again may take, of so many bytes."""
        self.reading = min(self.reading, _AGAIN[0] + nbytes / _AGAIN[1])

    @property
    def spent(self) -> float:
        """Seconds since it began."""
        return self.read() - self.began

    def timed(self, work: Callable[[], Value]) -> tuple[Value, float]:
        """What some work gives, and the seconds that it took."""
        began = self.read()
        return work(), self.read() - began

    def held_out(self, count: int, seconds_each: float, passes: int, *, least: int) -> int:
        """Of `count` windows to measure on, as many as so many passes over them leave time to train."""
        return _as_many(count, least, _MEASURING * self.seconds / passes, seconds_each)

    def guard(self, count: int, seconds_each: float, *, least: int) -> int:
        """Of `count` windows to choose by, as many as looks at them leave time to train."""
        return _as_many(count, least, _LOOK * self.seconds, seconds_each)

    @property
    def weight(self) -> float:
        """Share of the training that is of the pruned model; the rest is of its control."""
        beside = self.control[1] / self.scoring if self.scoring > 0 else float(self.control[1] > 0)
        return 1 / (1 + beside)

    def for_training(self, *, written: bool) -> float:
        """Seconds to train the pruned model for, so that what comes after it fits; never nothing.

        `written`: the checkpoint is written and read again to be scored.
        """
        after = self.scoring + ((1 + _WRITING) * self.reading if written else 0.0) + sum(self.control)
        spare = _SPARE if any(self.control) else 1.0
        return max((self.seconds - self.spent - after) * self.weight * spare, 1e-3)

    @property
    def until(self) -> float:
        """When the control is ended wherever it is, a time of `read`."""
        return self.began + _ENDED * self.seconds - self.control[1]

    def notes(self, training: float) -> tuple[str, ...]:
        """What to say of a budget that was not kept, where `training` seconds were spent on training."""
        spent = self.spent
        if spent <= _SAID * self.seconds:
            return ()
        return (
            f"it took {spent:.0f} s and was given {self.seconds:.0f} s: all but the training takes "
            f"{spent - training:.0f} s",
        )


def _as_many(count: int, least: int, room: float, seconds_each: float) -> int:
    return min(count, max(least, int(room / max(seconds_each, 1e-9))))
