"""Where points go."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from tailwise.history.point import Point


@runtime_checkable
class PointSink(Protocol):
    """Takes points."""

    def write(self, point: Point) -> object:
        """Take one point. Called from the monitor's own thread; what it raises is logged once."""
        ...
