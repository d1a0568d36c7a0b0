"""What a function or an option takes, held against its annotation before any work is done with it."""

from __future__ import annotations

import builtins
import math
import os
import sys
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import lru_cache, wraps
from inspect import Parameter, Signature, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar, Union, get_args, get_origin

from tailwise.core.errors import UsageError, unknown_name

P = ParamSpec("P")
R = TypeVar("R")

_WORDS = {
    bool: "True or False", int: "a whole number", float: "a number", str: "text", type(None): "None",
    Path: "a path", os.PathLike: "a path",
}  # fmt: skip


def checked(function: Callable[P, R]) -> Callable[P, R]:
    """The function, whose arguments are held against their annotations first: `UsageError` names the wrong one.

    A number of numpy is a number, 2.0 a whole one; True is no number and a string no list.
    """

    @wraps(function)
    def holding(*args: P.args, **kwargs: P.kwargs) -> R:
        known, kinds = _parameters(function)
        try:
            bound = known.bind(*args, **kwargs)
        except TypeError:
            _tell_where(kwargs, known, kinds)
            return function(*args, **kwargs)  # Python says best what is missing
        for name, value in bound.arguments.items():
            if name in kinds:
                bound.arguments[name] = taken = _row(value, kinds[name])
                check(name, taken, kinds[name], default_of(known.parameters[name]))
        return function(*bound.args, **bound.kwargs)

    return holding


def _tell_where(given: Mapping[str, Any], known: Signature, kinds: Mapping[str, Any]) -> None:
    """`UsageError` where a keyword is a field of the options that the function takes."""
    for name in given:
        for argument, kind in kinds.items() if name not in known.parameters else ():
            for options in _parts(kind):
                if is_dataclass(options) and name in {item.name for item in fields(options)}:
                    made = f"{argument}={getattr(options, '__name__', options)}({name}=…)"
                    raise UsageError(f"{name} is no argument of its own", fix=f"give {made}")


def default_of(parameter: Parameter) -> Any:
    """What a parameter is where it is not given; None where it must be."""
    return None if parameter.default is Parameter.empty else parameter.default


def _row(value: Any, kind: Any) -> Any:
    """One name, where names are asked for, and what a generator gives, which can be gone through once, as lists."""
    parts = _parts(kind)
    if isinstance(value, str) and str not in parts and any(one in (Sequence[str], Iterable[str]) for one in parts):
        return names_in(value)
    return tuple(value) if isinstance(value, Iterator) and any(get_origin(one) is Sequence for one in parts) else value


def names_in(text: str) -> tuple[str, ...]:
    """The names of a list with commas."""
    return tuple(one for one in map(str.strip, text.split(",")) if one)


def check_fields(settings: Any, *, but: Collection[str] = ()) -> None:
    """`UsageError` where a field of a frozen dataclass is not what its annotation says.

    Whole numbers that came as 2.0 or from numpy become int, and a tuple of names may be given as a list or as one
    string with commas.
    """
    kinds = _field_kinds(settings.__class__)
    for item in fields(settings):
        if item.name not in but:
            given = getattr(settings, item.name)
            default = item.default if item.default is not MISSING else None
            taken = _taken(given, kinds[item.name])
            check(item.name, taken, kinds[item.name], default)
            if taken is not given:
                object.__setattr__(settings, item.name, taken)


def check_least(settings: Any, **least: float) -> None:
    """`UsageError` where a field is below its least value; None is passed over."""
    for name, bound in least.items():
        given = getattr(settings, name)
        if given is not None and given < bound:
            least_word = "zero" if bound == 0 else "one" if bound == 1 else f"{bound:g}"
            raise UsageError(f"{name} is {given:g}", fix=f"give {least_word} or more")


def check_choice(settings: Any, **known: Collection[str]) -> None:
    """`UsageError` where a field is none of the names that are known; None is passed over."""
    for name, names in known.items():
        given = getattr(settings, name)
        if given is not None and given not in names:
            raise UsageError(f"{name} is {given!r}", fix=f"choose {_or(sorted(names))}")


def check(name: str, value: Any, kind: Any, default: Any = None) -> None:
    """`UsageError` where `value` is nothing that the annotation `kind` allows."""
    if fits(value, kind):
        return
    literals = [one for part in _parts(kind) if get_origin(part) is Literal for one in get_args(part)]
    if isinstance(value, str) and literals:
        known = unknown_name(name, value, literals)
        raise UsageError(f"{name} is {value!r}", fix=known.fix if len(literals) > 4 else f"choose {_or(literals)}")
    example = "" if default is None or isinstance(default, tuple) else f", as {name}={default!r}"
    raise UsageError(f"{name} is {shown(value)}", fix=f"give {_or(_words(kind))}{example}")


def fits(value: Any, kind: Any) -> bool:  # noqa: PLR0911 - one line for each kind of annotation
    """Whether `value` is one of what the annotation names."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any or isinstance(kind, TypeVar | str):
        return True
    if origin in (Union, types.UnionType):
        # A class with `of` makes itself of what it is given, and says best what it cannot be made of.
        return any(fits(value, one) or hasattr(one, "of") for one in inner)
    if origin is Literal:
        return isinstance(value, str | int | None) and value in inner
    if kind is None or kind is type(None):
        return value is None
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return _is_number(value) and (isinstance(value, Integral) or float(value).is_integer())
    if kind is float:
        return _is_number(value)
    if origin is Callable or kind is Callable:
        return callable(value)
    base = origin or kind
    if base in (Sequence, Iterable, tuple, list, Collection, set, frozenset):
        return _is_row(value, base, inner)
    if isinstance(base, type) and issubclass(base, Mapping):
        return isinstance(value, Mapping) and (len(inner) < 2 or all(fits(one, inner[1]) for one in value.values()))
    return not isinstance(base, type) or _is_instance(value, base)


def _is_row(value: Any, base: Any, inner: tuple[Any, ...]) -> bool:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Iterable):
        return False
    if isinstance(value, Iterator):
        return base not in (tuple, list)  # it can be gone through once alone
    if not inner:
        return True
    if base is tuple and inner[-1] is not Ellipsis:
        row = tuple(value)
        return len(row) == len(inner) and all(map(fits, row, inner))
    return all(fits(one, inner[0]) for one in value)


def _is_instance(value: Any, base: type) -> bool:
    try:
        return isinstance(value, base)
    except TypeError:  # a protocol that cannot be asked
        return True


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def _taken(value: Any, kind: Any) -> Any:
    """The value as its field holds it."""
    parts = _parts(kind)
    if tuple[str, ...] in parts and str not in parts:
        if isinstance(value, str):
            return names_in(value)
        if isinstance(value, list):
            return tuple(value)
    if bool in parts and isinstance(value, bool):
        return value
    if _is_number(value):
        if int in parts and fits(value, int):
            return value if type(value) is int else int(value)
        if float in parts and type(value) is not float:
            return float(value)
    return value


def _parts(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, types.UnionType) else (kind,)


def _words(kind: Any) -> list[str]:
    said = []
    for part in _parts(kind):
        origin, inner = get_origin(part), get_args(part)
        if origin is Literal:
            said += [repr(one) for one in inner]
        elif origin is Callable or part is Callable:
            said.append("a function")
        elif origin in (Sequence, Iterable, tuple, list, Collection, set, frozenset):
            said.append(f"a list of {'names' if inner and inner[0] is str else 'them'}")
        elif isinstance(origin, type) and issubclass(origin, Mapping):
            said.append("a mapping")
        else:
            base = origin or part
            name = getattr(base, "__name__", str(base))
            said.append(_WORDS.get(base, f"{'an' if name[:1] in 'AEIO' else 'a'} {name}"))
    kept = [word for word in dict.fromkeys(said) if word != "None"]
    return kept or said


def _or(words: Sequence[Any]) -> str:
    *first, last = map(str, words)
    return f"{', '.join(first)} or {last}" if first else last


def shown(value: Any) -> str:
    """A value in a message: itself, or of what kind it is."""
    if value is None or isinstance(value, str | int | float | bool):
        text = repr(value)
        return text if len(text) <= 80 else f"{text[:77]}…"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeio' else 'a'} {name}"


@lru_cache(maxsize=256)
def _field_kinds(of: type) -> dict[str, Any]:
    names = _Names(vars(sys.modules[of.__module__]))
    return {item.name: _resolved(item.type, names) for item in fields(of)}


@lru_cache(maxsize=256)
def _parameters(function: Callable[..., Any]) -> tuple[Any, dict[str, Any]]:
    names, found = _Names(function.__globals__), signature(function)
    held = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    kinds = {
        name: _resolved(one.annotation, names)
        for name, one in found.parameters.items()
        if one.kind not in held and one.annotation is not Parameter.empty
    }
    return found, kinds


class _Names(dict[str, Any]):
    """Names as a module knows them; what it imports for the type checker alone is Any."""

    def __missing__(self, name: str) -> Any:
        return getattr(builtins, name, Any)


def _resolved(annotation: Any, names: _Names) -> Any:
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {"__builtins__": {}}, names)  # noqa: S307 - the annotations of this package
    except (TypeError, AttributeError):  # what stands for the type checker alone, and takes no [] or |
        return Any
