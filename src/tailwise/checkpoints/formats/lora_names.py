"""The names inside a LoRA adapter: which tensors make which update, and its scale."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tailwise.errors import UnreadableError

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
    rank = adapter.tensors[down].shape[0]
    alpha = float(_pattern(settings.get("alpha_pattern"), module, settings.get("lora_alpha", rank)))
    scale = alpha / rank**0.5 if settings.get("use_rslora") else alpha / rank
    # In a model that mixes Linear and Conv1D, peft flips only the latter; `_oriented` looks at the base.
    flip = embedding or bool(settings.get("fan_in_fan_out"))
    return Update(module, down, up, parts.get("lora_magnitude_vector"), scale, flip)


def _pattern(patterns: object, module: str, default: Any) -> Any:
    """The value of the first pattern that ends the module's name, as peft matches `alpha_pattern`.

    `rank_pattern` needs no look-up: the rank is the number of rows of A.
    """
    if isinstance(patterns, Mapping):
        for pattern, value in patterns.items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                return value
    return default
