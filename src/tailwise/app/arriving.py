"""Whether a run still writes: it does not say that it ends."""

from __future__ import annotations

import time

from tailwise.history.read import RunSummary

_PAUSE, _OVER = 300.0, 86_400.0  # seconds


def arriving(run: RunSummary) -> str:
    """`points arrive`; silent for minutes a run is stalled, and for a day over."""
    if run.updated is None:
        return "no points yet"
    silent = time.time() - run.updated
    if silent <= _PAUSE:
        return "points arrive"
    return "finished, or long stopped" if silent > _OVER else f"stalled: no point for {silent / 60:.0f} minutes"
