"""What a tokenizer that came with a model would make of a text, gone through before it is given one."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of, read_text

#: Characters that one of a text may become, and steps of the way there; those that models carry stay below ten.
_MOST_GROWTH, _MOST_STEPS = 1000.0, 200
_MOST_ADDED = 10_000  # tokens around a text
_FIX = "take the tokenizer from where the model came from, or give another by --tokenizer"


def check_file(file: Path) -> None:
    """`UnreadableError` where a tokenizer.json claims a table that it does not hold, or adds tokens without measure.

    The library makes room for both as it reads them. Other damage is left to who reads it.
    """
    try:
        document = json_of(read_text(file))
    except (OSError, ValueError):
        return
    for step in _steps(document.get("normalizer") if isinstance(document, dict) else None):
        if step.get("type") == "Precompiled" and not _holds_its_table(step.get("precompiled_charsmap")):
            raise UnreadableError("its table of characters is not as long as it says", where=file, fix=_FIX)
    if isinstance(document, dict) and _added(document.get("post_processor")) > _MOST_ADDED:
        raise UnreadableError(f"adds more than {_MOST_ADDED} tokens to every text", where=file, fix=_FIX)


def _holds_its_table(text: Any) -> bool:
    """Whether the bytes in `text`, base64, are as many as their first four say, as SentencePiece writes them."""
    try:
        data = base64.b64decode(text or "", validate=False)
    except (TypeError, ValueError, binascii.Error):
        return True  # which is refused for what it is
    return int.from_bytes(data[:4], "little") <= len(data)


def _added(tokens: Any) -> int:
    """Tokens that a post-processor puts around a text, or a pair."""
    total, waiting = 0, [tokens]
    while waiting:
        step = waiting.pop()
        if not isinstance(step, dict):
            continue
        waiting += step["processors"] if isinstance(step.get("processors"), list) else []
        known = step.get("special_tokens")
        for piece in [*_listed(step.get("single")), *_listed(step.get("pair"))]:
            name = piece.get("SpecialToken") if isinstance(piece, dict) else None
            token = known.get(str(name.get("id"))) if isinstance(name, dict) and isinstance(known, dict) else None
            total += len(_listed(token.get("ids"))) if isinstance(token, dict) else 0
    return total


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def check_growth(tokenizer: Any, where: object) -> None:
    """`UnreadableError` where the normalizer of a fast tokenizer of transformers makes a text grow without measure."""
    normalizer = getattr(getattr(tokenizer, "backend_tokenizer", None), "normalizer", None)
    if normalizer is None:
        return
    steps = list(_steps(json_of(normalizer.__getstate__())))
    growth = 1.0
    for step in steps:
        growth = min(growth * _growth(step), 1e300)
    if growth > _MOST_GROWTH or len(steps) > _MOST_STEPS:
        raise UnreadableError(
            f"its tokenizer has {len(steps)} steps before it cuts a text, which may make it {growth:.3g} times as long",
            where=where,
            fix=_FIX,
        )


def _steps(said: Any) -> Iterator[Mapping[str, Any]]:
    waiting = [said]
    while waiting:
        step = waiting.pop()
        if isinstance(step, dict):
            inner = step.get("normalizers")
            if isinstance(inner, list):
                waiting += inner
            else:
                yield step


def _growth(step: Mapping[str, Any]) -> float:
    """Times that a step can make a text longer by replacing; what normal forms add is little."""
    if step.get("type") != "Replace":
        return 1.0
    pattern = step.get("pattern")
    replaced = pattern.get("String") if isinstance(pattern, dict) else None
    content = len(str(step.get("content", "")))
    # A regular expression may match every character, or between any two.
    return max(1.0, content / len(replaced) if replaced else content + 1.0)
