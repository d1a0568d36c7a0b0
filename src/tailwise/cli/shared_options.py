"""Options that several commands share."""

from __future__ import annotations

import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Annotated, Any, Literal, get_args, get_type_hints

import typer

from tailwise.core.recipe import Recipe, RunOptions

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

#: Precision of a model's own arithmetic; losses are always in float32.
Compute = Literal["auto", "float32", "bfloat16", "float16"]


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
    names of a registry (`filled_help`).
    """

    name: str
    kind: Any
    default: Any = _REQUIRED
    help: str | None = None
    flags: tuple[str, ...] = ()
    panel: str | None = None
    metavar: str | None = None
    least: float | None = None
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


def of(options: type[Any], name: str, text: str, *, kind: Any = None, **more: Any) -> Option:
    """The row of a field: its name, type and default are those that the dataclass declares.

    `kind` in place of a type that no command line can give, such as an open engine.
    """
    default = next(item.default for item in fields(options) if item.name == name)
    return Option(name, get_type_hints(options)[name] if kind is None else kind, default, text, **more)


def told(options: type[Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """What a command was given for fields of a dataclass, by their names."""
    return {item.name: given[item.name] for item in fields(options) if item.name in given}


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


HOW, RUN = "How to measure", "How to run"
#: Options of whatever audits a model.
PRECISION = of(Recipe, "precision", "float64 is exact; float32 is twice as fast.", panel=HOW)
CONV = of(Recipe, "conv", "Matrices of a convolution.", panel=HOW)
K_FRAC = of(Recipe, "k_frac", "Tail fraction of alpha_hill.", panel=HOW)
SEED = of(Recipe, "seed", "Of everything random.", panel=HOW, least=0)
DEVICE = of(RunOptions, "device", "cpu, cuda, cuda:0.", panel=RUN)
WORKERS = of(RunOptions, "workers", "Matrices at once; one per core by default.", panel=RUN, least=1)


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
