"""How results look: one line in a shell, a table in a notebook, both cut with a count where they are long."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from dataclasses import MISSING, dataclass, field, fields
from typing import Any

#: Rows of a table in a notebook, and characters of a value in a line.
ROWS, LONGEST = 20, 60


@dataclass(frozen=True)
class Shown:
    """What a notebook shows: a sentence, and a table."""

    line: str
    heads: Sequence[str] = ()
    rows: Sequence[Sequence[object]] = ()
    whole: str = ""  # how to get the rest
    notes: Sequence[str] = field(default_factory=tuple)


class Brief:
    """A dataclass of results whose `repr` is short, and which a notebook shows as a table.

    Made with `@dataclass(frozen=True, repr=False)`; `_shown` is overridden where there is more to say than the fields.
    """

    def __repr__(self) -> str:
        given = [(name, value) for name, value, default in _fields_of(self) if value != default]
        return f"{type(self).__name__}({', '.join(f'{name}={brief(value)}' for name, value in given)})"

    def _repr_html_(self) -> str:
        return as_html(self._shown())

    def _shown(self) -> Shown:
        rows = [(name, brief(value)) for name, value, default in _fields_of(self) if value != default]
        return Shown(type(self).__name__, ("field", "value"), rows)


def _fields_of(item: Any) -> list[tuple[str, Any, Any]]:
    return [(one.name, getattr(item, one.name), _default(one)) for one in fields(item) if one.repr]


def _default(one: Any) -> Any:
    if one.default is not MISSING:
        return one.default
    make: Callable[[], Any] | None = None if one.default_factory is MISSING else one.default_factory
    return _NONE if make is None else make()


class _Nothing:
    """What no value equals."""

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


_NONE = _Nothing()


def brief(value: object) -> str:
    """A value in a line of a few words.

    >>> brief(tuple(range(300)))
    '<300 int>'
    >>> brief({"alpha": 3.25})
    "{'alpha': 3.25}"
    """
    if isinstance(value, str):
        return repr(value if len(value) <= LONGEST else value[: LONGEST - 1] + "…")
    if isinstance(value, float):
        return f"{value:.6g}"
    text = repr(value) if isinstance(value, Brief) or not _is_long(value) else ""
    if text and (len(text) <= LONGEST or isinstance(value, Brief)):
        return text
    return _counted(value)


def _is_long(value: object) -> bool:
    return hasattr(value, "shape") or (isinstance(value, Sized) and len(value) > 20)


def _counted(value: object) -> str:
    """What a value is, and how much of it."""
    if (shape := getattr(value, "shape", None)) is not None:
        return f"<{type(value).__name__} {'×'.join(map(str, shape))}>"
    if isinstance(value, Mapping):
        return f"<{len(value)} entries>"
    if isinstance(value, Sequence | set | frozenset):
        kinds = {type(one).__name__ for one in value}
        return f"<{len(value)} {kinds.pop() if len(kinds) == 1 else 'items'}>"
    return f"<{type(value).__name__}>"


def as_html(shown: Shown) -> str:
    """The sentence, and the table with a count of what is left out."""
    parts = [f"<p>{html.escape(shown.line)}</p>"]
    if shown.heads:
        head = "".join(f"<th>{html.escape(one)}</th>" for one in shown.heads)
        body = "".join(f"<tr>{_cells(row)}</tr>" for row in shown.rows[:ROWS])
        parts.append(f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")
        left = len(shown.rows) - ROWS
        if left > 0:
            more = f"; {shown.whole} has all" if shown.whole else ""
            parts.append(f"<p>… and {left} more{html.escape(more)}</p>")
    parts += [f"<p><small>{html.escape(note)}</small></p>" for note in shown.notes[:ROWS]]
    return "".join(parts)


def _cells(row: Iterable[object]) -> str:
    return "".join(f"<td>{html.escape(cell(value))}</td>" for value in row)


def cell(value: object) -> str:
    """A value in a table: three decimals, a dash for nothing."""
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value)
