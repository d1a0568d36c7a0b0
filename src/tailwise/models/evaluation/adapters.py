"""Folders of peft: which model an adapter adapts, and both of them loaded together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from tailwise.checkpoints.adapter_base import named_base
from tailwise.checkpoints.within import check_within
from tailwise.core.errors import UnreadableError, UsageError
from tailwise.core.optional import how_to_get
from tailwise.core.storage import json_of, read_text
from tailwise.models.evaluation.own_adapter import CONFIG, check_settings
from tailwise.models.evaluation.own_config import room_for
from tailwise.models.evaluation.quiet import quiet


def is_adapter(place: str | os.PathLike[str]) -> bool:
    """Whether a folder holds an adapter of peft, and no model of its own."""
    path = Path(place).expanduser()
    return (path / CONFIG).is_file() and not (path / "config.json").is_file()


def settings_of(place: str | os.PathLike[str]) -> dict[str, Any]:
    """What an adapter says of itself."""
    folder = Path(place).expanduser()
    path = folder / CONFIG
    check_within(folder, path)
    try:
        document = json_of(read_text(path))
    except (OSError, ValueError) as error:
        raise UnreadableError(f"could not be read ({error})", where=path) from error
    if not isinstance(document, dict):
        raise UnreadableError(f"holds a JSON {type(document).__name__}, and an object was expected", where=path)
    return document


def base_of(place: str | os.PathLike[str], given: str | None) -> str:
    """The model that an adapter adapts: the one given, or the one that it names."""
    return given or named_base(settings_of(place), place)


def in_words(place: str | os.PathLike[str], base: str) -> str:
    """`an adapter (LORA, rank 8) on BASE`."""
    settings = settings_of(place)
    rank = f", rank {settings['r']}" if settings.get("r") else ""
    return f"{os.fspath(place)}: an adapter ({settings.get('peft_type', 'LORA')}{rank}) on {base}"


def with_adapter(module: Any, place: str | os.PathLike[str]) -> Any:
    """The base with the adapter in it, as peft runs it. Raises `UsageError` where peft is not installed."""
    check_settings(settings_of(place), place)
    try:
        with quiet():
            import peft
    except ImportError as error:
        raise UsageError("scoring an adapter takes `peft`", where=place, fix=how_to_get("hf")) from error
    try:
        with quiet(), room_for(os.fspath(place), made=True):
            return peft.PeftModel.from_pretrained(module, os.fspath(Path(place).expanduser()))
    except UnreadableError:
        raise
    except Exception as error:  # every kind of adapter fails in its own way
        lines = str(error).strip().splitlines()
        detail = lines[0] if lines else type(error).__name__
        fix = "give the model that it was trained on by --base"
        raise UnreadableError(f"does not fit its base ({detail})", where=place, fix=fix) from error
