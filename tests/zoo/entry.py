"""One animal of the zoo, and how it is brought to life."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from zoo.oracle import Maps


@dataclass(frozen=True)
class Specimen:
    """A checkpoint on disk, the live model that it was saved from (where there is one), and what its layers do."""

    files: tuple[Path, ...]  # the same checkpoint in one format or several
    maps: Maps  # by the names of the live model, or of the file where there is no model
    model: nn.Module | None = None
    never: frozenset[str] = frozenset()  # tensors of two axes or more that are no maps
    roles: Mapping[str, str] = field(default_factory=dict)  # key → role, where a rule tells
    options: Mapping[str, Any] = field(default_factory=dict)  # for opening the file
    only: str = ""  # a pattern of the matrices that are read, where the model is large


@dataclass(frozen=True)
class Entry:
    """One line of the table."""

    name: str
    kind: str  # the heading that it stands under
    build: Callable[[Path], Specimen]  # writes into a folder of its own
    needs: str = ""  # the library without which it cannot be made
    blocks: int | None = None  # how many blocks the model has, where the table says
    refused: str = ""  # words of the reason, where the file is listed and nothing of it is measured
    pending: str = ""  # what does not come right yet
    since: str = "0.1.0"  # first version that reads (or refuses) it
