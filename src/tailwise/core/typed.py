"""JSON data against the dataclass that will be made of it: values are checked where they are read."""

from __future__ import annotations

import json
import sys
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from functools import lru_cache
from typing import Any, Literal, TypeGuard, Union, get_args, get_origin, get_type_hints

_LONGEST = 1 << 16  # signs of a text


def is_finite(value: object) -> TypeGuard[int | float]:
    """Whether a value of a document is a finite number, and one that a float holds.

    A whole number there may have thousands of digits, for which `math.isfinite` raises an `OverflowError`.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return -sys.float_info.max <= value <= sys.float_info.max


def check_typed(of: type, data: Any) -> None:
    """`TypeError` where a value of `data`, or one within it, is not what the field of that name in `of` holds.

    What has no field is passed over, and so are fields without a value. Numbers are finite, and whole ones have 64
    bits; NaN among values of any kind, and a text beyond measure, are a `ValueError`.
    """
    if not isinstance(data, dict):
        raise TypeError(f"{type(data).__name__} stands where {of.__name__} was expected")
    for name, kind in _kinds(of).items():
        if name in data and not _fits(data[name], kind):
            raise TypeError(f"{name} of {of.__name__} is {str(data[name])[:60]!r}")


@lru_cache(maxsize=64)
def _kinds(of: type) -> dict[str, Any]:
    hints = get_type_hints(of)
    return {item.name: hints[item.name] for item in fields(of)}


def _fits(value: Any, kind: Any) -> bool:
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType):
        others = [one for one in inner if one is not type(None)]
        return any(_fits(value, one) for one in others) if value is not None else len(others) < len(inner)
    if origin is Literal:
        return value in inner
    if origin is tuple:
        if inner[-1] is Ellipsis and isinstance(value, list) and _are_numbers(value, inner[0]):
            return True
        kinds = [inner[0]] * len(value) if inner[-1] is Ellipsis and isinstance(value, list) else inner
        return isinstance(value, list) and len(kinds) == len(value) and all(map(_fits, value, kinds))
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, dict) and all(_fits(item, inner[1]) for item in value.values())
    if kind is Any:
        json.dumps(value, allow_nan=False)  # ValueError
    return kind is Any or _is(value, kind)


def _are_numbers(values: list[Any], kind: Any) -> bool:
    """Whether all are finite numbers, and those are what is expected: a loss for each window can be many."""
    expected = kind is float or float in get_args(kind)
    return expected and set(map(type, values)) <= {float, int} and all(map(is_finite, values))


def _is(value: Any, kind: Any) -> bool:
    if is_dataclass(kind) and isinstance(kind, type):
        check_typed(kind, value)
        return True
    if isinstance(value, bool) or kind is bool:
        return kind is bool and isinstance(value, bool)
    if kind is str and isinstance(value, str) and len(value) > _LONGEST:
        raise ValueError(f"a text of {len(value)} signs: {value[:60]!r}…")
    if kind is float:
        return is_finite(value)
    return isinstance(value, kind) and not (kind is int and abs(value) >= 1 << 63)
