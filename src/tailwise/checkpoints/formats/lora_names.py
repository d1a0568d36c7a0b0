"""The names inside a LoRA adapter: which tensors make which update, and its scale."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.errors import UnreadableError
from tailwise.harmless import pattern_from_file

if TYPE_CHECKING:
    from tailwise.checkpoints.checkpoint import Checkpoint

_PREFIX = "base_model.model."
_FACTOR = re.compile(
    r"^(?P<module>.+)\.(?P<part>lora_(?:embedding_)?[AB]|lora_magnitude_vector)"
    r"(?:\.(?!bias)\w+)??(?:\.weight)?$"
)
_SAVED = re.compile(r"\.modules_to_save(?:\.default)?(?=\.)|\.base_layer(?=\.)")


@dataclass(frozen=True)
class Update:
    """The low-rank update of one module."""

    module: str  # in the base model
    down: str  # tensor A: (r, in); of an embedding (r, tokens)
    up: str  # tensor B: (out, r); of an embedding (dim, r)
    magnitude: str | None  # DoRA's m: (out,)
    scale: float
    flip: bool  # the base stores the transpose: an embedding (tokens × dim), or Conv1D (fan_in_fan_out)

    @property
    def tensors(self) -> tuple[str, ...]:
        """The adapter's tensors."""
        return (self.down, self.up) if self.magnitude is None else (self.down, self.up, self.magnitude)


def read_names(adapter: Checkpoint, settings: Mapping[str, Any]) -> tuple[list[Update], dict[str, str]]:
    """The updates, and the tensors that replace one of the base: base's name → adapter's name."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for name in adapter.tensors:
        match = _FACTOR.match(name)
        if match is None and ".lora_" in name:
            continue  # a bias of B: it changes the module's bias, not its matrix
        if match is None:
            saved[_SAVED.sub("", name.removeprefix(_PREFIX))] = name
            continue
        module = match["module"].removeprefix(_PREFIX).removesuffix(".base_layer")
        parts.setdefault(module, {})[match["part"]] = name
    return [_update(module, found, adapter, settings) for module, found in parts.items()], saved


def _update(module: str, parts: Mapping[str, str], adapter: Checkpoint, settings: Mapping[str, Any]) -> Update:
    embedding = "lora_embedding_A" in parts
    down = parts.get("lora_embedding_A" if embedding else "lora_A")
    up = parts.get("lora_embedding_B" if embedding else "lora_B")
    if down is None or up is None:
        raise UnreadableError(
            f"{module} has only one of the two LoRA factors", where=adapter.uri, fix="save the adapter again"
        )
    rank = _rank(module, adapter, down, up)
    alpha = _alpha(module, adapter, settings, rank)
    scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    # In a model that mixes Linear and Conv1D, peft flips only the latter; `_oriented` looks at the base.
    flip = embedding or bool(settings.get("fan_in_fan_out"))
    return Update(module, down, up, parts.get("lora_magnitude_vector"), scale, flip)


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


def _alpha(module: str, adapter: Checkpoint, settings: Mapping[str, Any], rank: int) -> float:
    """`lora_alpha` of a module: a finite number."""
    fix = "correct adapter_config.json"
    try:
        given = _pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", rank))
        alpha = float(given) if isinstance(given, int | float) and not isinstance(given, bool) else math.nan
    except (ValueError, OverflowError) as error:
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
