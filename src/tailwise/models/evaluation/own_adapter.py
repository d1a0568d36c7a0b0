"""What an adapter of peft says of itself, gone through before peft makes anything of it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from tailwise.core.errors import UnreadableError, UnsafeError
from tailwise.models.evaluation.own_code import needs_code
from tailwise.models.evaluation.own_patterns import check_patterns

CONFIG = "adapter_config.json"
#: Settings by which peft loads other models and files, wherever they lie, and some of them with their own code.
_ELSEWHERE = (
    "shadow_model", "adapters", "prompt_tuning_init_state_dict_path", "cache_file", "covariance_file",
)  # fmt: skip
#: Settings that are a pattern of modules' names where they are one text and no list; and those that are in a list too,
#: or, of an object, its keys: of ranks, of numbers of frequencies, of layers.
_PATTERNS = re.compile(r"\w*modules")
_EACH_A_PATTERN = re.compile(r"modules_to_save|\w+_pattern")

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
    # As peft matches the keys of patterns.
    check_patterns(_patterns(settings), f"its {CONFIG} has", where, "name its modules in a list", "(.*\\.)?({})$")


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
    for key, value in _items(settings):
        if isinstance(value, str):
            found: Iterable[Any] = [value] if _PATTERNS.fullmatch(key) or _EACH_A_PATTERN.fullmatch(key) else []
        else:
            listed = _EACH_A_PATTERN.fullmatch(key) and isinstance(value, Mapping | list | tuple)
            found = value if listed else []
        yield from (str(text) for text in found)
