"""What an adapter of peft says of itself, gone through before peft makes anything of it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from tailwise.core.errors import UnreadableError, UnsafeError
from tailwise.core.harmless import pattern_from_file, steps_of
from tailwise.models.evaluation.own_code import needs_code

CONFIG = "adapter_config.json"
#: Settings by which peft loads other models and files, wherever they lie, and some of them with their own code.
_ELSEWHERE = (
    "shadow_model", "adapters", "prompt_tuning_init_state_dict_path", "cache_file", "covariance_file",
)  # fmt: skip
#: Settings that are patterns of modules' names, and those whose keys are.
_PATTERNS, _PATTERN_KEYS = ("target_modules", "exclude_modules", "layers_pattern"), ("rank_pattern", "alpha_pattern")

#: Letters of the longest names of modules, and steps that all patterns together may take at worst with one of them,
#: which they do with no name that a model has.
_LETTERS, _MOST_STEPS = 100, 2 * 10**9

#: How weights begin by an approximate decomposition of the base's, which peft repeats when an adapter is loaded for
#: what was trained is what came on top; 16 is what its documentation names.
_ITERATED = re.compile(r"\w*_niter_(.*)", re.DOTALL)
_MOST_ITERATIONS, _MOST_LAYERS = 256, 10_000


def check_settings(settings: Mapping[str, Any], where: object) -> None:
    """`UnsafeError` where an adapter would have other models or files loaded, `UnreadableError` for bad patterns."""
    if settings.get("megatron_config"):  # peft imports the module that stands there
        raise needs_code(where, f"its {CONFIG} asks for a module of Megatron by name")
    for key, value in _items(settings):
        # The shadow of the model itself is made of what is there.
        if key in _ELSEWHERE and value and value != "mirror":
            raise UnsafeError(
                f"its {CONFIG} names other files or models to load, as {key}", where=where,
                fix="load the model in Python yourself, if you trust them, and give the module in place of its name",
            )  # fmt: skip
    _check_counts(settings, where)
    steps = 0
    for text in _patterns(settings):
        try:
            pattern_from_file(text)
            steps += steps_of(f"(.*\\.)?({text})$", _LETTERS)  # as peft matches the keys of patterns
            if steps > _MOST_STEPS:
                raise ValueError("patterns that may run without end")
        except ValueError as error:
            raise UnreadableError(f"its {CONFIG} has {error}", where=where, fix="name its modules in a list") from error


def _check_counts(settings: Mapping[str, Any], where: object) -> None:
    """`UnreadableError` where peft would go on and on before it reads a weight: to begin a training, or copy layers."""
    for key, value in _items(settings):
        said = _ITERATED.fullmatch(value) if isinstance(value, str) else None
        number = said[1] if said else str(value) if "iter" in key and isinstance(value, int | float) else ""
        if number and not (number.isdecimal() and len(number) < 9 and int(number) <= _MOST_ITERATIONS):
            raise _beyond(where, f"asks for {number[:20]} iterations by {key}")
    copied = settings.get("layer_replication")
    spans = [span for span in copied if isinstance(span, list | tuple)] if isinstance(copied, list | tuple) else []
    ends = [[at for at in span[:2] if isinstance(at, int)] for span in spans]
    if len(spans) > _MOST_LAYERS or sum(max(0, span[1] - span[0]) for span in ends if len(span) == 2) > _MOST_LAYERS:
        raise _beyond(where, "copies more layers than a model has")


def _beyond(where: object, what: str) -> UnreadableError:
    return UnreadableError(f"its {CONFIG} {what}", where=where, fix="take the file from where the adapter came from")


def _items(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    waiting: list[Any] = [settings]
    while waiting:
        for key, value in waiting.pop().items():
            yield str(key), value
            if isinstance(value, Mapping):
                waiting.append(value)


def _patterns(settings: Mapping[str, Any]) -> Iterator[str]:
    for key in _PATTERNS:
        value = settings.get(key)
        if isinstance(value, str):
            yield value
    for key in _PATTERN_KEYS:
        value = settings.get(key)
        yield from (str(name) for name in value if isinstance(value, Mapping)) if value else ()
