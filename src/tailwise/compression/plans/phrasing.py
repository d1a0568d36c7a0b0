"""Names in messages."""

from __future__ import annotations

from collections.abc import Collection

_SHOWN = 3


def listed(names: Collection[str]) -> str:
    """A few names, and how many more."""
    shown = ", ".join(list(names)[:_SHOWN])
    return shown if len(names) <= _SHOWN else f"{shown} and {len(names) - _SHOWN} more"
