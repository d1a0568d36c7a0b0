"""What reaches the first block of a model, and how it goes on from block to block."""

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
from tailwise.models.walking.statistics import Collector, as_they_are, is_prunable


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


def called_again(model: nn.Module) -> UsageError:
    """The error for a model that goes through its blocks more than once."""
    return UsageError(
        "its blocks are gone through more than once, and a layer's inputs are gathered at one place only",
        where=type(model).__name__,
        fix="use an operator that looks at the weights alone: magnitude, or rtn",
    )


def named_in(inputs: torch.Tensor | Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Token ids (n, window), or inputs by name, as inputs by name. `UsageError` where they differ in number."""
    given = {"input_ids": inputs} if isinstance(inputs, torch.Tensor) else dict(inputs)
    sizes = {len(value) for value in given.values()}
    if len(sizes) != 1 or 0 in sizes:
        raise UsageError("there is nothing to calibrate on", fix="give one window or more, as many of each input")
    return given


@contextmanager
def without_cache(model: nn.Module) -> Iterator[None]:
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
            with as_they_are(self.values):
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


def first_states(home: Home, blocks: list[Block], given: Mapping[str, torch.Tensor] | Pictures, batch: int) -> _States:
    """What the first block is given for every sample, each with the rest of its call."""
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
                raise called_again(model)
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
