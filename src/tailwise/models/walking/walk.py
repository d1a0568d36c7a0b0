"""Block by block through a model: the inputs of each block come from the blocks before it as they are now.

Only one block's weights need to be in memory, beside the states between two blocks. What a block is given beside
its states (masks, positions) is seen in one pass in which no block computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any, Protocol

import torch
from torch import nn

from tailwise.core.errors import TailwiseError, UsageError
from tailwise.models.activations import Activations, Need
from tailwise.models.walking.statistics import Collector, is_prunable
from tailwise.models.walking.towers import text_tower, vision_tower


@dataclass(frozen=True)
class Block:
    """One step of the walk: a decoder or encoder block, or a stage of a convolutional network."""

    index: int
    count: int
    name: str  # full name of the module
    module: nn.Module

    def layers(self) -> dict[str, nn.Module]:
        """Full name → layer, for the linear layers and convolutions in it."""
        inside = self.module.named_modules(prefix=self.name)
        return {name: module for name, module in inside if is_prunable(module)}


class Home(Protocol):
    """Where blocks live while they are not needed, and where they go when they are."""

    model: nn.Module
    device: torch.device

    def enter(self, module: nn.Module, name: str) -> None:
        """Bring a module's weights to the device."""

    def leave(self, module: nn.Module, name: str) -> None:
        """Let them go; they are not needed again."""

    def outside(self, blocks: Sequence[Block]) -> None:
        """Bring to the device what the pass before the first block needs."""


@dataclass(frozen=True)
class Pictures:
    """What the tower that reads images is given, image by image, as the processor of the model made it."""

    each: tuple[Mapping[str, torch.Tensor], ...]


class Visitor(Protocol):
    """What is done at each block."""

    def needs(self, block: Block) -> Mapping[str, Need]:
        """Layer → what is to be known of its inputs. Called when the block has its weights, and may change them."""

    def visit(self, block: Block, activations: Mapping[str, Activations]) -> None:
        """Look at the statistics and change the block's weights in place."""


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
    given = inputs if isinstance(inputs, Pictures) else _named(inputs)
    blocks = vision_blocks_of(home.model) if pictures else blocks_of(home.model)
    _check_shared(home.model)
    training = home.model.training
    home.model.eval()
    try:
        with torch.no_grad(), _without_cache(home.model):
            home.outside([*blocks, *blocks_of(home.model)] if pictures else blocks)
            states = _first_states(home, blocks, given, batch)
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
        raise _called_again(model)
    stored, called = getattr(config, "num_hidden_groups", None), getattr(config, "num_hidden_layers", None)
    if isinstance(stored, int) and isinstance(called, int) and stored < called:
        raise UsageError(
            f"its {called} layers share the weights of {stored}, and a layer's inputs are gathered at one place only",
            where=type(model).__name__,
            fix="use an operator that looks at the weights alone: magnitude, or rtn",
        )


def _called_again(model: nn.Module) -> UsageError:
    return UsageError(
        "its blocks are gone through more than once, and a layer's inputs are gathered at one place only",
        where=type(model).__name__,
        fix="use an operator that looks at the weights alone: magnitude, or rtn",
    )


def _named(inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    given = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
    sizes = {len(value) for value in given.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError("there is nothing to calibrate on", fix="give one window or more, as many of each input")
    return given


@contextmanager
def _without_cache(model: nn.Module) -> Iterator[None]:
    """No config asks for a cache: parts of a composite model (the text model of LLaVA, say) have their own."""
    before = [(config, config.use_cache) for config in _configs(model)]
    for config, _ in before:
        config.use_cache = False
    try:
        yield
    finally:
        for config, asked in before:
            config.use_cache = asked


def _configs(model: nn.Module) -> list[Any]:
    """Every config that says whether to cache, of the model and its parts, each once."""
    waiting: list[Any] = [getattr(module, "config", None) for module in model.modules()]
    known: dict[int, Any] = {}
    while waiting:
        config = waiting.pop()
        if not hasattr(config, "__dict__") or id(config) in known:
            continue
        known[id(config)] = config
        waiting += [value for key, value in vars(config).items() if key.endswith("config")]
    return [config for config in known.values() if getattr(config, "use_cache", None) is not None]


_CACHES = frozenset({"past_key_values", "past_key_value", "layer_past", "cache_params", "cache_position"})


def _without_past(rest: tuple[Any, ...], named: Mapping[str, Any]) -> _Call:
    """A call as it can be made again and again: a block that was handed a cache would see its own keys of before."""
    arguments = {name: None if name in _CACHES or _is_cache(value) else value for name, value in named.items()}
    if "use_cache" in arguments:
        arguments["use_cache"] = False
    return _Call(tuple(None if _is_cache(value) else value for value in rest), arguments)


def _is_cache(value: Any) -> bool:
    return any(kind.__name__.endswith("Cache") for kind in type(value).__mro__)


class _StopError(Exception):
    """Ends the pass at the last block."""


@dataclass
class _Call:
    """What a block is called with beside the states."""

    rest: tuple[Any, ...]
    named: dict[str, Any]


@dataclass
class _States:
    """The states before a block, and how each block is called, batch by batch."""

    home: Home
    values: list[torch.Tensor]
    calls: list[dict[int, _Call]]  # per batch: block → call

    def take(self, block: Block, visitor: Visitor, *, edits: bool, last: bool) -> None:
        """Visit a block and go past it."""
        needs = visitor.needs(block)
        moved = False
        if any(need != "none" for need in needs.values()):
            with Collector(block.layers(), needs) as collector:
                for at, state in enumerate(self.values):
                    collector.windows = len(state)
                    after = self._run(block, at, state)
                    collector.batch_ends()
                    if not edits:
                        self.values[at] = after
                moved = not edits
                activations = collector.found()
            visitor.visit(block, activations)
        if not moved and not last:
            self.values = [self._run(block, at, state) for at, state in enumerate(self.values)]

    def _run(self, block: Block, at: int, state: torch.Tensor) -> torch.Tensor:
        call = self.calls[at].get(block.index) or self.calls[at][0]
        output = block.module(state, *call.rest, **call.named)
        if not isinstance(output, tuple):
            return output  # type: ignore[no-any-return]
        if len(self.calls[at]) < block.count and any(isinstance(item, torch.Tensor) for item in output[1:]):
            raise UsageError(
                "its blocks hand one another more than their states (in T5, a bias of positions)",
                where=type(self.home.model).__name__,
                fix="use an operator that looks at the weights alone: magnitude, or rtn",
            )
        return output[0]  # type: ignore[no-any-return]


def _first_states(home: Home, blocks: list[Block], given: Mapping[str, torch.Tensor] | Pictures, batch: int) -> _States:
    states = _States(home, [], [])
    call = _reading_images(home.model) if isinstance(given, Pictures) else home.model
    for batched in given.each if isinstance(given, Pictures) else _batches(given, batch):
        part = {name: value.to(home.device) for name, value in batched.items()}
        state, calls = _calls(home.model, call, blocks, part)
        states.values.append(state)
        states.calls.append(_shared(calls, states.calls))
    return states


def _batches(given: Mapping[str, torch.Tensor], batch: int) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(next(iter(given.values()))), batch):
        yield {name: value[start : start + batch] for name, value in given.items()}


def _reading_images(model: nn.Module) -> Callable[..., Any]:
    """What is called with what a processor made of an image: it is given what it takes of that."""
    inner = getattr(model, "model", None)
    read: Any = getattr(model, "get_image_features", None) or getattr(inner, "get_image_features", None)
    if read is None:
        raise UsageError(
            "transformers has no way to give it images alone",
            where=type(model).__name__,
            fix="plan without --also vision, or with magnitude or rtn",
        )
    takes = signature(read).parameters
    return lambda **given: read(**{name: value for name, value in given.items() if name in takes})


def _calls(
    model: nn.Module, call: Callable[..., Any], blocks: list[Block], part: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, dict[int, _Call]]:
    """The states before the first block, and the call of every block, from a pass in which no block computes."""
    states: list[torch.Tensor] = []
    calls: dict[int, _Call] = {}

    def instead(block: Block) -> Callable[..., torch.Tensor]:
        def forward(*given: Any, **named: Any) -> torch.Tensor:
            if block.index in calls:
                raise _called_again(model)
            state = given[0] if given else named.pop("hidden_states")
            states.append(state)
            calls[block.index] = _without_past(given[1:], named)
            if block.index == len(blocks) - 1:
                raise _StopError
            return state  # type: ignore[no-any-return]

        return forward

    for block in blocks:
        block.module.forward = instead(block)
    try:
        call(**part)
    except _StopError:
        pass
    except TailwiseError:
        raise
    except Exception as error:  # a later block could not do without the one before: the first call then stands for all
        if not states:
            raise _not_called(model, part, error) from error
    finally:
        for block in blocks:
            del block.module.forward
    if not states:
        raise UsageError("its blocks are not called one by one", where=type(model).__name__, fix="use magnitude")
    return states[0], calls


def _not_called(model: nn.Module, part: Mapping[str, torch.Tensor], error: Exception) -> UsageError:
    lines = str(error).strip().splitlines()
    return UsageError(
        f"it could not be called with {', '.join(sorted(part))} ({lines[0] if lines else type(error).__name__})",
        where=type(model).__name__,
        fix="give all that it takes by name from Python, or use an operator that looks at the weights alone: "
        "magnitude, or rtn",
    )


def _shared(calls: dict[int, _Call], before: Sequence[dict[int, _Call]]) -> dict[int, _Call]:
    """The same calls, holding the tensors of the first batch and block wherever those are equal."""
    known: list[torch.Tensor] = []
    for one in [*before[:1], calls]:
        for call in one.values():
            call.rest = _pooled(call.rest, known)
            call.named = _pooled(call.named, known)
    return calls


def _pooled(value: Any, known: list[torch.Tensor]) -> Any:
    if isinstance(value, torch.Tensor):
        for other in known:
            if other is value or (other.shape == value.shape and other.dtype == value.dtype and other.equal(value)):
                return other
        known.append(value)
    if isinstance(value, dict):
        return {key: _pooled(item, known) for key, item in value.items()}
    if type(value) in (tuple, list):
        return type(value)(_pooled(item, known) for item in value)
    return value
