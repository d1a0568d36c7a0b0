"""Patterns of sparsity: unstructured, N:M (N kept of each M along the input axis), and a mix of N:M."""

from __future__ import annotations

import re
from dataclasses import dataclass

from tailwise.core.errors import UsageError

UNSTRUCTURED = "unstructured"
BLOCK = "block"  # of an entry whose whole block goes; its sparsity is 1
EXPERTS = "experts"  # of an entry that is of an expert which goes, or of a stack of which some go
_FORM = re.compile(r"(N|\d{1,3}):(\d{1,3})")
_FIX = f"choose {UNSTRUCTURED}, a fixed N:M such as 2:4 or 4:8 (N kept of M), or N:8 for a mix"


@dataclass(frozen=True)
class Pattern:
    """N kept of each `group`; `kept` is None for a mix, `group` is None for unstructured."""

    kept: int | None = None
    group: int | None = None

    @property
    def fixed(self) -> float | None:
        """The sparsity that a fixed N:M has everywhere."""
        return None if self.kept is None or self.group is None else 1.0 - self.kept / self.group

    @property
    def mixed(self) -> bool:
        """Whether each tensor has an N of its own."""
        return self.group is not None and self.kept is None

    def __str__(self) -> str:
        if self.group is None:
            return UNSTRUCTURED
        return f"{'N' if self.kept is None else self.kept}:{self.group}"


def parse_pattern(text: str, *, mixed: bool = True) -> Pattern:
    """`unstructured`, `2:4`, and with `mixed` also `N:8`. `UsageError` for anything else."""
    if text == UNSTRUCTURED:
        return Pattern()
    match = _FORM.fullmatch(text)
    if match is None or (match[1] == "N" and not mixed):
        raise UsageError(f"there is no pattern {text!r}", fix=_FIX)
    n, group = None if match[1] == "N" else int(match[1]), int(match[2])
    if group < 2 or (n is not None and not 1 <= n < group):
        raise UsageError(f"the pattern {text!r} keeps nothing, or everything", fix=_FIX)
    return Pattern(n, group)
