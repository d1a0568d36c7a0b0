"""Where in a track a change began."""

from __future__ import annotations

from itertools import pairwise
from typing import Any, Literal

import numpy as np

from tailwise.training.alarm_watch import Track

Shape = Literal["jump", "slope"]
_FEWEST = 6
_RECENT = 8  # points that are searched for a jump: older ones have turns of their own
_LEAST: dict[Shape, int] = {"jump": 1, "slope": 3}  # points on either side


def began(track: Track, shape: Shape = "jump") -> int | None:
    """The step from which the track stands at another level (`jump`) or takes another course (`slope`).

    The one split into two constants, or two straight lines, that leaves the smallest squares, by `ruptures` (Truong,
    Oudre & Vayatis 2020, Signal Processing 167:107299). Without that package (`pip install "tailwise[training]"`): the
    end of the largest step between two points. None with fewer than 6 points, or where nothing changed.

    It is asked when an alarm is raised, not at every point, and over a bounded track.
    """
    reach = _RECENT if shape == "jump" else len(track)
    steps = np.asarray(track.steps, dtype=float)[-reach:]
    values = np.asarray(track.values, dtype=float)[-reach:]
    if len(values) < _FEWEST or np.ptp(values) == 0.0:
        return None
    values = values / np.abs(values).max()  # the squares of very large values would overflow
    try:
        import ruptures
    except ImportError:
        jumps = [abs(after - before) for before, after in pairwise(values)]
        return int(steps[int(np.argmax(jumps)) + 1])
    signal = (values - values.mean()) / max(float(values.std()), 1e-12)
    if shape == "slope":
        signal = np.column_stack([signal, (steps - steps[0]) / (steps[-1] - steps[0]), np.ones_like(signal)])
    return int(steps[_split(ruptures, signal, shape)])


def _split(ruptures: Any, signal: Any, shape: Shape) -> int:
    model = "l2" if shape == "jump" else "linear"
    found = ruptures.Binseg(model=model, jump=1, min_size=_LEAST[shape]).fit(signal).predict(n_bkps=1)
    return int(found[0])
