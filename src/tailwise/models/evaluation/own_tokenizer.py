"""What a tokenizer that came with a model would make of a text, gone through before it is given one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from tailwise.core.errors import UnreadableError
from tailwise.core.storage import json_of

#: Characters that one of a text may become, and steps of the way there; those that models carry stay below ten.
_MOST_GROWTH, _MOST_STEPS = 1000.0, 200


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
            fix="take the tokenizer from where the model came from, or give another by --tokenizer",
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
