"""Whether a run still writes: it does not say that it ends."""

from __future__ import annotations

import time

from tailwise.history.read import RunSummary

_PAUSE, _OVER = 300.0, 86_400.0  # seconds


def arriving(run: RunSummary) -> str:
    """`points arrive`; silent for minutes a run is stalled, and for a day over. Checkpoints come as they come."""
    if run.updated is None:
        return "no points yet"
    silent = time.time() - run.updated
    if not run.points and silent <= _OVER:
        return "audits of checkpoints, the latest " + ("just now" if silent < 60 else f"{silent / 60:.0f} minutes ago")
    if silent <= _PAUSE:
        return "points arrive"
    return "finished, or long stopped" if silent > _OVER else f"stalled: no point for {silent / 60:.0f} minutes"
