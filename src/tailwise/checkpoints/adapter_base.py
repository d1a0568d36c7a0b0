"""Which model an adapter of peft says it adapts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tailwise.checkpoints.hub import parse_hub, tell_of_request
from tailwise.core.errors import UsageError
from tailwise.core.harmless import one_line

#: What a name begins with that Windows asks another machine for.
_SHARES = ("\\\\", "//")


def named_base(settings: Mapping[str, Any], where: object) -> str:
    """The model that an adapter says it adapts: a folder, or a Hugging Face id, which is told before it is asked for.

    `UsageError` for anything else: nobody but the adapter's author named it.
    """
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
