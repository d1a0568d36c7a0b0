"""Errors inside the monitor: each kind is logged once and counted, and none reaches the training."""

from __future__ import annotations

import logging

logger = logging.getLogger("tailwise.monitor")


class Faults:
    """What went wrong, by where."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[str, int]] = {}

    def note(self, where: str, error: BaseException) -> None:
        """Count an error; the first of its kind is logged with its traceback."""
        text, count = self._seen.get(where, (f"{type(error).__name__}: {error}", 0))
        self._seen[where] = text, count + 1
        if not count:
            logger.error("the monitor failed at %s; the training goes on", where, exc_info=error)

    @property
    def texts(self) -> tuple[str, ...]:
        """One line of each kind."""
        return tuple(f"failed {count}× at {where}: {text}" for where, (text, count) in self._seen.items())
