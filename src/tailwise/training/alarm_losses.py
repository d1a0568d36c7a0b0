"""The loss step by step: what is usual of late, so that a rise is told from what batches differ by."""

from __future__ import annotations

import math
from collections import deque
from itertools import pairwise
from statistics import median

from tailwise.judging.diagnosis.medians import robust_scale

PAST, SHORT = 64, 5  # losses that a rise is held against, and those that show it
FEWEST = 20
_LEVEL = 16  # losses whose median is where the run stands
_RENEWED = 8  # steps after which what is usual is computed anew
_FLOOR = 0.02  # share of the loss below which its scatter is never taken to be


class LossTrack:
    """The last losses of a run, one a step, oldest first; those that are not finite are counted and not kept."""

    def __init__(self) -> None:
        self.steps: deque[int] = deque(maxlen=PAST + _RENEWED)
        self.values: deque[float] = deque(maxlen=PAST + _RENEWED)
        self.first: float | None = None
        self.step, self.last = 0, 0.0  # of the last, whatever it is
        self.usual: tuple[float, float] | None = None  # median and scatter before the last few
        self._since = 0

    def add(self, step: int, value: float) -> None:
        """Take the loss of a step. An earlier step: the run went back, and what came after it is forgotten."""
        while self.steps and self.steps[-1] >= step:
            self.steps.pop()
            self.values.pop()
        self.step, self.last = step, value
        if not math.isfinite(value):
            return
        self.first = value if self.first is None else self.first
        self.steps.append(step)
        self.values.append(value)
        self._since += 1
        if self._since >= _RENEWED and len(self.values) >= FEWEST + _RENEWED:
            past = list(self.values)[:-_RENEWED]
            # From one step to the next, so that the fall of a run that learns is no scatter.
            steps = [after - before for before, after in pairwise(past)]
            middle = median(past[-_LEVEL:])
            _, scatter = robust_scale(steps, math.sqrt(2) * (_FLOOR * abs(middle) + 1e-6))
            self.usual, self._since = (middle, scatter / math.sqrt(2)), 0

    @property
    def recent(self) -> list[float]:
        """The last few, newest first."""
        return [self.values[-1 - i] for i in range(min(SHORT, len(self.values)))]

    def began(self, bound: float) -> int:
        """The step of the oldest of the last few that is above a bound."""
        return next((self.steps[-1 - i] for i in reversed(range(min(SHORT, len(self.values))))
                     if self.values[-1 - i] >= bound), self.step)  # fmt: skip
