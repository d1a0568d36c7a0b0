"""What the blocks of a model gave for some windows, so that a change in a late block is scored from there on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.checkpoint import checkpoint

from tailwise.core.errors import UsageError
from tailwise.models.walking.block_inputs import Block
from tailwise.models.walking.walk import blocks_of

#: Bytes of states that are kept: no more than the model has, within these bounds. Where all would need more, every
#: second, third, … block's are kept, and what lies between is computed again.
LEAST_STATES, MOST_STATES = 256 << 20, 4 << 30


class Prefix:
    """The outputs of blocks under some weights.

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
        held = sum(item.numel() * item.element_size() for item in model.parameters())
        self._most = min(max(held, LEAST_STATES), MOST_STATES)
        self._kept: dict[int, list[Any]] = {}
        self._windows: torch.Tensor | None = None

    def block_of(self, parameter: str) -> int:
        """The block that a parameter lies in; −1 for one that lies in none."""
        return next((block.index for block in self._blocks if parameter.startswith(f"{block.name}.")), -1)

    def knows(self, windows: torch.Tensor) -> bool:
        """Whether outputs are kept for these windows."""
        return self._windows is windows

    def forget(self) -> None:
        """Let the outputs go."""
        self._kept, self._windows = {}, None

    def record(self, windows: torch.Tensor) -> NDArray[np.float64]:
        """Losses of the windows, (n,), from a whole run of which outputs are kept."""
        self.forget()
        room = _Room(self._most, len(windows) * len(self._blocks))
        states: dict[int, list[Any]] = {}

        def keep(index: int) -> Callable[..., None]:
            def hook(_module: nn.Module, _given: object, out: Any) -> None:
                if room.takes(index, out):
                    states.setdefault(index, []).append(out)

            return hook

        handles = [block.module.register_forward_hook(keep(block.index)) for block in self._blocks]
        try:
            losses = self._score(self._model, windows)
        finally:
            for handle in handles:
                handle.remove()
        if states and not room.full:
            self._kept, self._windows = states, windows
        return losses

    def again(self) -> AbstractContextManager[None]:
        """Gradients hold the activations of one block, and the outputs of the others, for a while."""
        return _again(self._blocks)

    def losses(self, windows: torch.Tensor, first: int) -> NDArray[np.float64]:
        """Losses of the windows, (n,), where no weight before block `first` has changed since `record`."""
        last = max((index for index in self._kept if index < first), default=None)
        if last is None or not self.knows(windows):
            return self._score(self._model, windows)
        with _replayed(self._blocks[: last + 1], self._kept[last]):
            return self._score(self._model, windows)


@contextmanager
def _again(blocks: list[Block]) -> Iterator[None]:
    """Each of the blocks is run once more on the way back, from what it was given."""
    for block in blocks:
        block.module.forward = partial(checkpoint, block.module.forward, use_reentrant=False)
    try:
        yield
    finally:
        for block in blocks:
            del block.module.forward


@contextmanager
def _replayed(blocks: list[Block], states: list[Any]) -> Iterator[None]:
    """Each of the blocks gives what the last of them gave: what those before it give is not looked at."""
    for block in blocks:
        calls = iter(states)
        block.module.forward = lambda *_given, calls=calls, **_named: next(calls)
    try:
        yield
    finally:
        for block in blocks:
            del block.module.forward


class _Room:
    """Which blocks' outputs are kept, of `outputs` for single windows in all; told by the first that comes."""

    def __init__(self, most: int, outputs: int) -> None:
        self._left, self._outputs, self._every = most, outputs, 0

    @property
    def full(self) -> bool:
        """Whether more came than there is room for."""
        return self._left < 0

    def takes(self, index: int, out: Any) -> bool:
        """Whether the output of a block for a batch is kept."""
        tensors = [item for item in (out if isinstance(out, tuple) else (out,)) if isinstance(item, torch.Tensor)]
        nbytes = sum(item.numel() * item.element_size() for item in tensors)
        if not self._every:
            windows = max(1, len(tensors[0]) if tensors and tensors[0].ndim else 1)
            self._every = max(1, -(-nbytes * self._outputs // (windows * max(1, self._left))))
        if (index + 1) % self._every:
            return False
        self._left -= nbytes
        return not self.full
