"""Options that several commands share."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated

import typer

Output = Annotated[
    list[str] | None,
    typer.Option("-o", "--output", metavar="FILE", help="x.audit, x.json, x.csv, x.parquet or x.md; may be repeated.",
                 rich_help_panel="Output"),
]  # fmt: skip
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout, all else on stderr.", rich_help_panel="Output")]
Rows = Annotated[int, typer.Option(min=0, help="Longest table printed; 0 for all.", rich_help_panel="Output")]

_RUN = "How to run"
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)]
Workers = Annotated[
    int | None, typer.Option(min=1, help="Matrices at once; one per core by default.", rich_help_panel=_RUN)
]


class Begin(StrEnum):
    """Whether windows of text begin with the token that begins a text."""

    auto = "auto"
    always = "always"
    never = "never"


Bos = Annotated[
    Begin, typer.Option("--bos", help="Windows begin with BOS: auto, as the tokenizer does by itself; always; never.")
]


def comma_list(text: str | None) -> tuple[str, ...]:
    """`"a, b"` → `("a", "b")`."""
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


@contextmanager
def solver_to_stderr() -> Iterator[None]:
    """The integer solver prints a line to file descriptor 1 now and then, which would spoil JSON: to stderr instead."""
    sys.stdout.flush()
    saved = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
