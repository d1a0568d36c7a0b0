"""What an adapter of peft says of itself, gone through before peft makes anything of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailwise.core.errors import UnreadableError, UnsafeError, UsageError
from tailwise.core.harmless import one_line, pattern_from_file
from tailwise.models.evaluation.own_code import needs_code

CONFIG = "adapter_config.json"
#: Settings by which peft loads other models and files, wherever they lie, and some of them with their own code.
_ELSEWHERE = (
    "shadow_model", "adapters", "prompt_tuning_init_state_dict_path", "cache_file", "covariance_file",
)  # fmt: skip
#: Settings that are patterns of modules' names, and those whose keys are.
_PATTERNS, _PATTERN_KEYS = ("target_modules", "exclude_modules", "layers_pattern"), ("rank_pattern", "alpha_pattern")
#: What a name begins with that Windows asks another machine for.
_SHARES = ("\\\\", "//")


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
    for text in _patterns(settings):
        try:
            pattern_from_file(text)
        except ValueError as error:
            raise UnreadableError(f"its {CONFIG} has {error}", where=where, fix="name its modules in a list") from error


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


def named_base(settings: Mapping[str, Any], where: object) -> str:
    """The model that an adapter says it adapts: a folder, or a Hugging Face id, which is told before it is asked for.

    `UsageError` for anything else: nobody but the adapter's author named it.
    """
    from tailwise.checkpoints.hub import parse_hub, tell_of_request

    name = settings.get("base_model_name_or_path")
    if not name:
        raise UsageError("is an adapter that does not say which model it adapts", where=where, fix="give --base MODEL")
    text = str(name)
    if not text.startswith(_SHARES) and _is_folder(text):
        return text
    if parse_hub(text, None) is None:
        raise UsageError(
            f"is an adapter of {one_line(text)[:200]!r}, which is no folder here and no Hugging Face id", where=where,
            fix="give the model that it adapts by --base",
        )  # fmt: skip
    tell_of_request(text, where)
    return text


def _is_folder(name: str) -> bool:
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):
        return False
