"""Options that several commands share."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_args

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


_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """A row: the parameter, the kind of its values, its default, and what help says of it.

    `kind` is a type, or an `Annotated` one that several commands share. In help, `{pruners}` and its like stand for
    names of a registry (`help_texts`).
    """

    name: str
    kind: Any
    default: Any = _REQUIRED
    help: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None
    metavar: str | None = None
    least: int | None = None  # of whole numbers
    setting: bool = False  # told to the way to choose, by its name, where it is given

    @property
    def annotation(self) -> Any:
        """As typer takes it."""
        if self.help is None:
            return self.kind if self.panel is None else _in_panel(self.kind, self.panel)
        info = typer.Option(
            *self.flags, help=self.help, metavar=self.metavar, rich_help_panel=self.panel, min=self.least
        )
        return Annotated[self.kind, info]


def _in_panel(kind: Any, panel: str) -> Any:
    """An option that several commands share, in a panel of one of them."""
    inner, info = get_args(kind)
    moved = copy(info)
    moved.rich_help_panel = panel
    return Annotated[inner, moved]


def command(run: Callable[..., None], rows: Sequence[Option], name: str, text: str) -> Callable[..., None]:
    """A function that typer reads as one with these parameters; `run` is called with their values by name."""

    def called(**given: Any) -> None:
        run(**given)

    parameters = [
        inspect.Parameter(row.name, inspect.Parameter.KEYWORD_ONLY, default=row.default, annotation=row.annotation)
        for row in rows
    ]
    # PEP 362: `inspect.signature`, by which typer reads a command, looks here first; type checkers do not know it.
    called.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    called.__annotations__ = {row.name: row.annotation for row in rows}
    called.__name__, called.__doc__ = name, text
    return called


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
