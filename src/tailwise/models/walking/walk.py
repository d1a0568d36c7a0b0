"""Block by block through a model: the inputs of each block come from the blocks before it as they are now.

Only one block's weights need to be in memory, beside the states between two blocks. What a block is given beside
its states (masks, positions) is seen in one pass in which no block computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import nn

from tailwise.core.errors import UsageError
from tailwise.models.walking.block_inputs import (
    Block,
    Home,
    Pictures,
    Visitor,
    called_again,
    first_states,
    named_in,
    without_cache,
)
from tailwise.models.walking.towers import text_tower, vision_tower


@dataclass
class InPlace:
    """The home of a model that is in memory as a whole: each block visits the device and goes back."""

    model: nn.Module
    device: torch.device

    def enter(self, module: nn.Module, name: str) -> None:  # noqa: ARG002 - see Home
        """See `Home`."""
        self._home = next((value.device for value in module.parameters()), torch.device("cpu"))
        module.to(self.device)

    def leave(self, module: nn.Module, name: str) -> None:  # noqa: ARG002 - see Home
        """See `Home`."""
        module.to(self._home)

    def outside(self, blocks: Sequence[Block]) -> None:
        """See `Home`."""
        inside = {id(module) for block in blocks for module in block.module.modules()}
        for module in self.model.modules():
            if id(module) in inside:
                continue
            for name, value in module._parameters.items():
                if value is not None:
                    module._parameters[name] = nn.Parameter(value.to(self.device), requires_grad=False)
            for name, buffer in module._buffers.items():
                if buffer is not None:
                    module._buffers[name] = buffer.to(self.device)


def home_of(model: nn.Module | Home) -> Home:
    """The home itself, or that of a model in memory: it computes where it is."""
    if not isinstance(model, nn.Module):
        return model
    first = next(model.parameters(), None)
    return InPlace(model, torch.device("cpu") if first is None else first.device)


def walk_blocks(
    model: nn.Module | Home,
    inputs: torch.Tensor | Mapping[str, torch.Tensor] | Pictures,
    visitor: Visitor,
    *,
    batch: int = 8,
    edits: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Take `visitor` through the blocks of a model of transformers, from the data to the labels.

    `inputs` are token ids (n, window), or what the model is called with, by name, with n on the first axis; or images,
    which go through the blocks of the tower that reads them. With
    `edits`, each block is run again after its visit, and the next one sees what it then gives; without, one pass
    does. `progress` is called with the blocks done and in all.
    """
    home = home_of(model)
    pictures = isinstance(inputs, Pictures)
    given = inputs if isinstance(inputs, Pictures) else named_in(inputs)
    blocks = vision_blocks_of(home.model) if pictures else blocks_of(home.model)
    _check_shared(home.model)
    training = home.model.training
    home.model.eval()
    try:
        with torch.no_grad(), without_cache(home.model):
            home.outside([*blocks, *blocks_of(home.model)] if pictures else blocks)
            states = first_states(home, blocks, given, batch)
            for block in blocks:
                home.enter(block.module, block.name)
                states.take(block, visitor, edits=edits, last=block.index == len(blocks) - 1)
                home.leave(block.module, block.name)
                if progress is not None:
                    progress(block.index + 1, len(blocks))
    finally:
        home.model.train(training)


def blocks_of(model: nn.Module) -> list[Block]:
    """The blocks: of the lists of modules that lie in no other, the one with the most parameters.

    Of a model of several towers, those of the tower that reads text.
    """
    blocks = _longest(*text_tower(model))
    if not blocks:
        raise UsageError(
            "it has no list of blocks to go through",
            where=type(model).__name__,
            fix="use the operator magnitude, which needs no calibration",
        )
    return blocks


def vision_blocks_of(model: nn.Module) -> list[Block]:
    """The blocks of the tower that reads images; none where the model has no such tower beside that of its text."""
    tower = vision_tower(model)
    return [] if tower is None else _longest(*tower)


def _longest(tower: str, inside: nn.Module) -> list[Block]:
    best: tuple[int, str, nn.ModuleList] | None = None
    nested: tuple[str, ...] = ()
    for name, module in inside.named_modules(prefix=tower):
        if not isinstance(module, nn.ModuleList) or name.startswith(nested or ("\0",)):
            continue
        nested = (*nested, f"{name}.")
        size = sum(value.numel() for value in module.parameters())
        if size and (best is None or size > best[0]):
            best = (size, name, module)
    if best is None:
        return []
    _, name, blocks = best
    return [Block(index, len(blocks), f"{name}.{index}", module) for index, module in enumerate(blocks)]


#: Fields that say how often all blocks are gone through; a pass ends at the last block of the first time.
_LOOPS = ("num_loops", "n_loops", "num_recurrent_steps", "n_recurrent_loops", "total_ut_steps")


def _check_shared(model: nn.Module) -> None:
    """`UsageError` where fewer layers than the model has are stored, as in ALBERT: one is called again and again."""
    config = getattr(model, "config", None)
    loops = [getattr(config, name, None) for name in _LOOPS]
    if any(isinstance(count, int) and count > 1 for count in loops):
        raise called_again(model)
    stored, called = getattr(config, "num_hidden_groups", None), getattr(config, "num_hidden_layers", None)
    if isinstance(stored, int) and isinstance(called, int) and stored < called:
        raise UsageError(
            f"its {called} layers share the weights of {stored}, and a layer's inputs are gathered at one place only",
            where=type(model).__name__,
            fix="use an operator that looks at the weights alone: magnitude, or rtn",
        )
