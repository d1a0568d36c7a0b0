"""What the blocks of a model gave for some windows, so that a change in a late block is scored from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tailwise.core.errors import UsageError
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.walk import blocks_of

#: Bytes of states that are kept at most; a model that would need more is run whole every time.
MOST_STATES = 4 << 30


class Prefix:
    """The outputs of every block under some weights.

    A block is called once for each batch of windows, and `score` makes the same batches every time; so the n-th call
    of a block is given what its n-th call gave. `score` gives the loss of every window, (n,).
    """

    def __init__(self, model: nn.Module, score: Callable[[nn.Module, torch.Tensor], NDArray[np.float64]]) -> None:
        self._score = score
        try:
            self._blocks = blocks_of(model)
        except UsageError:  # such a model is run whole
            self._blocks = []
        self._model = model
        self._kept: list[list[Any]] = []
        self._windows: torch.Tensor | None = None

    def block_of(self, parameter: str) -> int:
        """The block that a parameter lies in; −1 for one that lies in none."""
        return next((block.index for block in self._blocks if parameter.startswith(f"{block.name}.")), -1)

    def knows(self, windows: torch.Tensor) -> bool:
        """Whether outputs are kept for these windows."""
        return self._windows is windows

    def forget(self) -> None:
        """Let the outputs go."""
        self._kept, self._windows = [], None

    def record(self, windows: torch.Tensor) -> NDArray[np.float64]:
        """Losses of the windows, (n,), from a whole run whose outputs are kept."""
        self.forget()
        states: list[list[Any]] = [[] for _ in self._blocks]
        room = _Room(MOST_STATES)

        def keep(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _given: object, out: Any) -> None:
                if room.take(out):
                    states[index].append(out)

            return hook

        handles = [block.module.register_forward_hook(keep(block.index)) for block in self._blocks]
        try:
            losses = self._score(self._model, windows)
        finally:
            for handle in handles:
                handle.remove()
        if self._blocks and not room.full:
            self._kept, self._windows = states, windows
        return losses

    def losses(self, windows: torch.Tensor, first: int) -> NDArray[np.float64]:
        """Losses of the windows, (n,), where no weight before block `first` has changed since `record`."""
        if first <= 0 or not self.knows(windows):
            return self._score(self._model, windows)
        with _replayed(self._blocks[:first], self._kept):
            return self._score(self._model, windows)


@contextmanager
def _replayed(blocks: list[Block], states: list[list[Any]]) -> Iterator[None]:
    for block in blocks:
        calls = iter(states[block.index])
        block.module.forward = lambda *_given, calls=calls, **_named: next(calls)
    try:
        yield
    finally:
        for block in blocks:
            del block.module.forward


class _Room:
    def __init__(self, left: int) -> None:
        self._left, self.full = left, False

    def take(self, out: Any) -> bool:
        tensors = out if isinstance(out, tuple) else (out,)
        self._left -= sum(item.numel() * item.element_size() for item in tensors if isinstance(item, torch.Tensor))
        self.full = self.full or self._left < 0
        return not self.full
