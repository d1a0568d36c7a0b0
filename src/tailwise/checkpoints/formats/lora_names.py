"""The names inside a LoRA adapter: which tensors make which update, and its scale."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.harmless import pattern_from_file

if TYPE_CHECKING:
    import torch

    from tailwise.checkpoints.checkpoint import Checkpoint

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.(?!bias)\w+)??(?:\.weight)?$"
)
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)|\.token_adapter(?=\.base_layer\.)|\.base_layer(?=\.)")
_TOKENS = re.compile(r"^(?P<module>.+?)(?:\.base_layer)?\.token_adapter\.trainable_tokens_delta(?:\.\w+)?$")


@dataclass(frozen=True)
class Update:
    """The low-rank update of one module, or of one parameter of it."""

    module: str  # in the base model
    down: str  # tensor A: (r, in); of an embedding (r, tokens)
    up: str  # tensor B: (out, r); of an embedding (dim, r)
    magnitude: str | None  # DoRA's m: (out,)
    scale: float
    rank: int
    flip: bool  # the base stores the transpose: an embedding (tokens × dim), or Conv1D (fan_in_fan_out)
    tensor: str = ""  # the parameter that is changed, where it is not the module's weight
    parameters: tuple[str, ...] = ()  # of `target_parameters`, not yet told apart: what it may be
    depth: int = 0  # of `target_parameters`: how many wrappers are around it
    experts: int = 0  # stacked in the parameter; 0 for a matrix
    expert: int | None = None  # the one that is meant, where it is one alone

    @property
    def tensors(self) -> tuple[str, ...]:
        """The adapter's tensors."""
        return (self.down, self.up) if self.magnitude is None else (self.down, self.up, self.magnitude)


@dataclass(frozen=True)
class Contents:
    """What an adapter's tensors are, each named once; the names are those of the base."""

    updates: list[Update]
    saved: dict[str, str]  # what replaces a tensor of the base: base's name → adapter's name
    tokens: dict[str, str]  # rows that replace rows of a table: base's name → adapter's name
    biases: list[str]  # of B: they change the module's bias, not its matrix


def read_names(adapter: Checkpoint, settings: Mapping[str, Any]) -> Contents:
    """What the adapter's tensors are, from their names and adapter_config.json. `UnreadableError`."""
    parts: dict[tuple[str, int], dict[str, str]] = {}
    contents = Contents([], {}, {}, [])
    for name in adapter.tensors:
        match = _FACTOR.match(name)
        if match is not None:
            stem = match["module"].removeprefix(_PREFIX)
            module = _bare(stem)
            depth = (len(stem) - len(module)) // len(_INNER) if _parameters(module, settings) else 0
            parts.setdefault((module, depth), {})[match["part"]] = name
        elif tokens := _TOKENS.match(name):
            contents.tokens[f"{tokens['module'].removeprefix(_PREFIX)}.weight"] = name
        elif ".lora_" in name:
            contents.biases.append(name)
        else:
            contents.saved[_SAVED.sub("", name.removeprefix(_PREFIX))] = name
    contents.updates.extend(_update(*key, tensors, adapter, settings) for key, tensors in parts.items())
    return contents


_INNER = ".base_layer"


def _bare(module: str) -> str:
    while module.endswith(_INNER):
        module = module.removesuffix(_INNER)
    return module


def _parameters(module: str, settings: Mapping[str, Any]) -> tuple[str, ...]:
    """The parameters of a module that `target_parameters` names."""
    given, modules = settings.get("target_parameters"), settings.get("target_modules")
    ends = modules if isinstance(modules, list) else ()
    if any(module == end or module.endswith(f".{end}") for end in ends):
        return ()  # peft lets a module be adapted in one way only
    parameters = []
    for target in given if isinstance(given, list) else ():
        owner, _, parameter = str(target).rpartition(".")
        if not owner or module == owner or module.endswith(f".{owner}"):
            parameters.append(f"{module}.{parameter}")
    return tuple(dict.fromkeys(parameters))


def token_indices(tensor: str, settings: Mapping[str, Any]) -> list[int] | None:
    """Which rows of a table `trainable_token_indices` replaces; None where it does not say."""
    given = settings.get("trainable_token_indices")
    module = tensor.removesuffix(".weight")
    if isinstance(given, Mapping):
        ends = (indices for name, indices in given.items() if module == name or module.endswith(f".{name}"))
        given = next(ends, None)
    whole = isinstance(given, list) and all(type(index) is int and index >= 0 for index in given)
    return given if isinstance(given, list) and whole else None


def _update(
    module: str, depth: int, parts: Mapping[str, str], adapter: Checkpoint, settings: Mapping[str, Any]
) -> Update:
    embedding = "lora_embedding_A" in parts
    down = parts.get("lora_embedding_A" if embedding else "lora_A")
    up = parts.get("lora_embedding_B" if embedding else "lora_B")
    if down is None or up is None:
        raise UnreadableError(
            f"{module} has only one of the two LoRA factors", where=adapter.uri, fix="save the adapter again"
        )
    rank = _rank(module, adapter, down, up)
    parameters = _parameters(module, settings) if len(adapter.tensors[down].shape) == 2 and not embedding else ()
    if parameters:
        rank = _rank_of_parameters(parameters, rank, adapter, settings)
    alpha = _alpha(module, parameters, adapter, settings, rank)
    scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    # In a model that mixes Linear and Conv1D, peft flips only the latter; `_oriented` looks at the base.
    flip = embedding or bool(settings.get("fan_in_fan_out"))
    magnitude = parts.get("lora_magnitude_vector")
    return Update(module, down, up, magnitude, scale, rank, flip, parameters=parameters, depth=depth)


def _rank_of_parameters(
    parameters: tuple[str, ...], rows: int, adapter: Checkpoint, settings: Mapping[str, Any]
) -> int:
    """The rank of one expert: it is stored in the settings alone, as A has the rows of all experts."""
    ranks = {_setting(settings, "rank_pattern", name, settings.get("r", 8), adapter) for name in parameters}
    rank = ranks.pop()
    if ranks or type(rank) is not int or rank < 1 or rows % rank:
        raise UnreadableError(
            f"the rank of {', '.join(parameters)} cannot be told: {str(rank)[:50]} for {rows} rows of A",
            where=adapter.uri,
            fix="correct r and rank_pattern in adapter_config.json, or merge it with peft (merge_and_unload)",
        )
    return rank


def _rank(module: str, adapter: Checkpoint, down: str, up: str) -> int:
    first, last = adapter.tensors[down].shape, adapter.tensors[up].shape
    fit = len(first) == len(last) > 1 and first[0] == last[1] and first[0] > 0 and set(last[2:]) <= {1}
    if not fit:
        raise UnreadableError(
            f"the factors of {module} are {list(first)} and {list(last)}, which do not make one matrix",
            where=adapter.uri,
            fix="save the adapter again",
        )
    return first[0]


def _setting(settings: Mapping[str, Any], patterns: str, name: str, default: Any, adapter: Checkpoint) -> Any:
    try:
        return _pattern(settings.get(patterns), name, default)
    except (ValueError, OverflowError) as error:
        what = f"{patterns} of {name} cannot be told: {str(error)[:200]}"
        raise UnreadableError(what, where=adapter.uri, fix="correct adapter_config.json") from error


def _alpha(
    module: str, parameters: tuple[str, ...], adapter: Checkpoint, settings: Mapping[str, Any], rank: int
) -> float:
    """`lora_alpha` of a module: a finite number."""
    fix = "correct adapter_config.json"
    default = settings.get("lora_alpha", rank)
    values = [_setting(settings, "alpha_pattern", name, default, adapter) for name in parameters or (module,)]
    given = values[0]
    if len({repr(value) for value in values}) > 1:
        what = f"alpha differs among {', '.join(parameters)}, and the adapter does not tell whose factors are whose"
        raise UnreadableError(what, where=adapter.uri, fix="merge it with peft (merge_and_unload)")
    try:
        alpha = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    except OverflowError as error:
        what = f"alpha of {module} cannot be told: {str(error)[:200]}"
        raise UnreadableError(what, where=adapter.uri, fix=fix) from error
    if not math.isfinite(alpha):
        what = f"lora_alpha of {module} is {str(given)[:50]!r}, not a number"
        raise UnreadableError(what, where=adapter.uri, fix=fix)
    return alpha


def scale_of(settings: Mapping[str, Any], module: str, rank: int) -> float | None:
    """The scale that settings of peft give a module; None where they do not say a number."""
    try:
        alpha = float(_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha")))
    except (TypeError, ValueError, OverflowError):
        return None
    if not math.isfinite(alpha):
        return None
    return alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank


def _pattern(patterns: object, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as peft matches `alpha_pattern`.

    `rank_pattern` needs no look-up: the rank is the number of rows of A.
    """
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            if module == pattern or pattern_from_file(f"(.*\\.)?({pattern})$").match(module):
                return value
    return default


def in_base(updates: Iterable[Update], adapter: Checkpoint, base: Checkpoint) -> list[Update]:
    """The updates, those of stacked parameters with the base's parameter that each changes. `UsageError`."""
    placed: list[Update] = []
    taken: set[str] = set()
    for update in updates:
        if not update.parameters:
            placed.append(update)
            continue
        fitting = [name for name in update.parameters if _fits(update, adapter, base, name)]
        if len(fitting) != 1 or fitting[0] in taken:
            names = ", ".join(update.parameters)
            what = "none of them has" if not fitting else "not one alone has"
            raise UsageError(
                f"the adapter updates a parameter of {update.module} ({names}), and {what} the shape of its factors",
                where=adapter.uri,
                fix="give the base model that the adapter was trained on, or merge it with peft (merge_and_unload) "
                "and audit the saved model",
            )
        taken.add(fitting[0])
        placed.append(_placed(update, adapter, base, fitting[0]))
    return placed


def _fits(update: Update, adapter: Checkpoint, base: Checkpoint, name: str) -> bool:
    spec = base.tensors.get(name)
    rows, inputs = adapter.tensors[update.down].shape
    outputs = adapter.tensors[update.up].shape[0]
    if spec is None or len(spec.shape) not in (2, 3):
        return False
    experts, *sides = spec.shape if len(spec.shape) == 3 else (1, *spec.shape)
    return rows == experts * update.rank and sorted(sides) == sorted((inputs, outputs))


def _placed(update: Update, adapter: Checkpoint, base: Checkpoint, name: str) -> Update:
    shape = base.tensors[name].shape
    inputs, outputs = adapter.tensors[update.down].shape[1], adapter.tensors[update.up].shape[0]
    if len(shape) == 3 and inputs == outputs:
        raise UsageError(
            f"the experts of {name} are square, and the adapter does not tell which axis its inputs are",
            where=adapter.uri,
            fix="audit the update alone, without a base, or merge it with peft (merge_and_unload)",
        )
    experts = shape[0] if len(shape) == 3 else 0
    return replace(update, tensor=name, experts=experts, flip=shape[-2:] != (outputs, inputs), parameters=())


def alone(updates: Iterable[Update], adapter: Checkpoint) -> Iterator[tuple[Update, str]]:
    """The updates without a base, one for each expert, and what is not known of them."""
    for update in updates:
        if not update.parameters:
            yield update, ""
            continue
        count = adapter.tensors[update.down].shape[0] // update.rank
        name, note = update.parameters[0], ""
        if len(update.parameters) > 1:
            name = f"{update.module}{'.base_layer' * update.depth}"
            ends = ", ".join(parameter.rpartition(".")[2] for parameter in update.parameters)
            note = f"the change of one of {ends}: which one only the base tells (give it as base)"
        for e in range(count):
            at = f"{name}[{e}]" if count > 1 else name
            yield replace(update, tensor=at, experts=count, expert=e, parameters=()), note


def factors_of(
    update: Update, down: torch.Tensor, up: torch.Tensor, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(B[e], A[e]) of the experts `start:stop`, shapes (n, out, r) and (n, r, in)."""
    A = down.reshape(update.experts, update.rank, -1)[start:stop]
    B = up.reshape(up.shape[0], update.rank, update.experts).permute(2, 0, 1)[start:stop]
    return B, A
