"""Comparisons that `tailwise compare --json` wrote, read back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tailwise.core.errors import MALFORMED, UnreadableError
from tailwise.core.harmless import shortened
from tailwise.core.storage import json_of, read_text
from tailwise.core.typed import is_finite
from tailwise.judging.compare.comparison import Comparison, Delta, LayerDelta, RoleChange


def read_comparisons(path: str | Path) -> list[Comparison]:
    """Every comparison of a file, in its order. Raises `UnreadableError` where it is none."""
    try:
        document = json_of(read_text(path))
        found = [_comparison(one) for one in (document if isinstance(document, list) else [document])]
    except OSError as error:
        raise UnreadableError(f"could not be read: {error.strerror or error}", where=path) from error
    except MALFORMED as error:
        fix = "write it again: `tailwise compare A B --json`"
        raise UnreadableError(f"is no comparison of audits ({error})", where=path, fix=fix) from error
    if not found:
        raise UnreadableError("holds no comparison", where=path)
    return found


def _comparison(document: Mapping[str, Any]) -> Comparison:
    return Comparison(
        before=_text(document["before"]), after=_text(document["after"]),
        layers=tuple(_layer(one) for one in document["layers"]),
        added=_texts(document["added"]), missing=_texts(document["missing"]),
        renamed=tuple(_some(one, 2) for one in document["renamed"]),  # type: ignore[misc]  # `_some` holds the length
        reshaped=tuple(_some(one, 3) for one in document["reshaped"]),  # type: ignore[misc]  # as above
        summary={_text(name): _delta(one) for name, one in document["summary"].items()},
        notes=_texts(document.get("notes", ())), roles=tuple(_role(one) for one in document.get("roles", ())),
        level=_required(document.get("level", 0.05)), unmeasured=_texts(document.get("unmeasured", ())),
    )  # fmt: skip


def _layer(one: Mapping[str, Any]) -> LayerDelta:
    block = one["block"]
    return LayerDelta(
        name=_text(one["name"]), name_before=_text(one["name_before"]), role=_text(one["role"]),
        block=None if block is None else int(block), identical=bool(one["identical"]),
        deltas={_text(name): _delta(delta) for name, delta in one["deltas"].items()},
        weights={_text(name): _required(value) for name, value in one.get("weights", {}).items()},
        trusted=bool(one.get("trusted", True)), of_bulk=bool(one.get("of_bulk", False)),
    )  # fmt: skip


def _delta(one: Mapping[str, Any]) -> Delta:
    sure = one.get("significant")
    return Delta(_number(one["before"]), _number(one["after"]), _number(one["change"]), _number(one.get("z")),
                 None if sure is None else bool(sure))  # fmt: skip


def _role(one: Mapping[str, Any]) -> RoleChange:
    sure = one.get("significant")
    return RoleChange(_text(one["role"]), _text(one["metric"]), int(one["layers"]), _required(one["median_change"]),
                      _number(one["p"]), None if sure is None else bool(sure))  # fmt: skip


def _number(value: Any) -> float | None:
    return None if value is None else _required(value)


def _required(value: Any) -> float:
    if not is_finite(value):
        raise TypeError(f"{shortened(repr(value), 100)} is no number")
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} is no text")
    return value


def _texts(values: Sequence[Any]) -> tuple[str, ...]:
    return _each(values, _text)


def _some(values: Sequence[Any], count: int) -> tuple[str, ...]:
    if len(values) != count:
        raise ValueError(f"{len(values)} names in place of {count}")
    return _each(values, _text)


def _each(values: Sequence[Any], make: Callable[[Any], str]) -> tuple[str, ...]:
    if not isinstance(values, list | tuple):
        raise TypeError(f"{values!r} is no list")
    return tuple(make(value) for value in values)
