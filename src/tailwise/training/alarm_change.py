"""Where in a track a change began."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from tailwise.training.alarm_watch import Track

Shape = Literal["jump", "turn"]
_FEWEST = 6
_RECENT = 8  # points that are searched: older ones have turns of their own


def began(track: Track, shape: Shape = "jump") -> int | None:
    """The step from which the track stands at another level (`jump`), or after which it takes another course (`turn`).

    A loss or an update jumps; weights, which add updates up, turn. Of the last points, or of the slopes between them:
    the one split into two constants that leaves the smallest squares, by `ruptures` (Truong, Oudre & Vayatis 2020,
    Signal Processing 167:107299). Without that package (`pip install "tailwise[training]"`): the largest change from
    one point, or slope, to the next. None with fewer than 6 points, or where nothing changed.

    It is asked when an alarm is raised, not at every point, and over a bounded track.
    """
    steps = np.asarray(track.steps, dtype=float)[-_RECENT:]
    values = np.asarray(track.values, dtype=float)[-_RECENT:]
    if len(values) < _FEWEST or np.ptp(values / 2) == 0.0:
        return None
    values = values / np.abs(values).max()  # the squares of very large values would overflow
    signal = values if shape == "jump" else np.diff(values) / np.diff(steps)
    scatter = float(signal.std())
    if scatter == 0.0:
        return None
    # A slope belongs to the point that it starts from, so both have the step of their index.
    return int(steps[_split((signal - signal.mean()) / scatter)])


def _split(signal: NDArray[np.float64]) -> int:
    """Index of the first value after the change."""
    try:
        import ruptures
    except ImportError:
        return int(np.argmax(np.abs(np.diff(signal)))) + 1
    return int(ruptures.Binseg(model="l2", jump=1, min_size=1).fit(signal).predict(n_bkps=1)[0])
