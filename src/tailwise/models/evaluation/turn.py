"""The order in which windows are scored, and how many of them: an interruption ends that early."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

_log = logging.getLogger(__name__)


class Turn:
    """Windows in a random order, so that those that were scored before an interruption stand for all."""

    def __init__(self, windows: torch.Tensor, seed: int) -> None:
        self._windows, self.ended = windows, threading.Event()
        self.order: NDArray[np.int64] = np.random.default_rng(seed).permutation(len(windows))

    @property
    def shuffled(self) -> torch.Tensor:
        """The windows as they are scored."""
        return self._windows[self.order]

    def first(self, count: int) -> torch.Tensor:
        """The first so many that are scored, in the order of the text."""
        return self._windows[np.sort(self.order[:count])]

    def end(self) -> None:
        """Score no further ones."""
        self.ended.set()
        _log.warning("interrupted: the windows that were scored are told; interrupt again to end without")

    def in_order(self, values: torch.Tensor) -> torch.Tensor:
        """What was found of the windows that were scored, in the order of the text, by which neighbours are known."""
        return values[np.argsort(self.order[: len(values)])]

    def notes(self, count: int) -> tuple[str, ...]:
        """What an interruption left out."""
        if count == len(self._windows):
            return ()
        return (f"interrupted: {count} of {len(self._windows)} windows were scored, drawn at random",)
