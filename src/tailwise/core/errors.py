"""Every exception that tailwise raises on purpose.

    TailwiseError
    ├── UsageError         the caller asked for something that cannot be (exit code 2)
    │   └── UnknownNameError  a name that nothing has
    └── UnreadableError    the input could not be read (exit code 3)
        ├── UnsafeError       reading it would run code that came with the file
        └── UnreachableError  a store that cannot be reached or written just now

A message says what happened, where, and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from heapq import nlargest
from itertools import islice

from tailwise.core.spoken import in_python
from tailwise.core.synonyms import said_of

#: What can be done with a model whose weights are codes, where they must be dequantized floats. fp32 leaves the
#: values as they decode, in the dtype that the config names.
AS_NUMBERS = (
    "give the model that it was made from, or write this one dequantized first "
    "(tailwise plan quantize MODEL --formats fp32 --dequantize, then tailwise apply) and plan for what that writes"
)


#: What is raised over a document that is not as its writer made it, whoever reads it: edited, cut, or made to harm.
MALFORMED = (
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, AssertionError, RecursionError, StopIteration,
)  # fmt: skip

#: Whether whoever reads an error made now called a command; told by `tailwise.cli`, where there is one.
_on_command_line: Callable[[], bool] = bool


def speak_by(on_command_line: Callable[[], bool]) -> None:
    """Let messages name options (`--base MODEL`) where the function says so, and else arguments (`base=MODEL`)."""
    global _on_command_line  # noqa: PLW0603 - one voice for the process
    _on_command_line = on_command_line


class TailwiseError(Exception):
    """Base of all errors raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = _cut(what), where, None if fix is None else _cut(fix)
        message = self.what if where is None else f"{_cut(str(where))}: {self.what}"
        message = message if fix is None else f"{message}\n  → {self.fix}"
        super().__init__(message if _on_command_line() else in_python(message))

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.where, self.fix)


_LONGEST_PART = 1 << 14  # signs of what, where or fix in a message: files name things at any length


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_PART else f"{text[:_LONGEST_PART]}… ({len(text)} signs)"


def _rebuild(kind: type[TailwiseError], what: str, where: object, fix: str | None) -> TailwiseError:
    return kind(what, where=where, fix=fix)


class UsageError(TailwiseError):
    """What the caller asked for cannot be: an unknown name, a wrong pattern, a missing argument."""

    exit_code = 2


class UnknownNameError(UsageError):
    """Nothing has the name that was asked for."""


class UnreadableError(TailwiseError):
    """The input exists in name but could not be read: absent, truncated, lying, not permitted."""

    exit_code = 3


class UnsafeError(UnreadableError):
    """Reading the input would execute code that came with it."""


class UnreachableError(UnreadableError):
    """A store cannot be reached or written just now; the same request may succeed later."""


#: What libraries say where an allocation, a library or a thread does not fit; none of them raises a MemoryError.
_NO_MEMORY = ("allocate memory", "failed to map segment", "can't start new thread", "malloc of size", "out of memory")


def lacks_memory(error: BaseException) -> bool:
    """Whether something failed for lack of memory, whatever kind of error a library made of it."""
    if isinstance(error, MemoryError):
        return True
    return isinstance(error, ImportError | RuntimeError | OSError) and any(said in str(error) for said in _NO_MEMORY)


_LONGEST = 300  # of a name that near ones are looked for, and of these
_MOST_NAMES = 20_000  # that are looked through
_COMPARED = 50  # of these in full, which takes time with the square of their letters
_LISTED = 30  # names in a message


def near_names(name: str, known: Iterable[str], most: int = 3, cutoff: float = 0.5) -> list[str]:
    """Names most like `name` by the ratio of `difflib`, the nearest first; none for names of hundreds of letters."""
    if len(name) > _LONGEST:
        return []
    matcher = difflib.SequenceMatcher(b=name)
    alike: list[tuple[float, str]] = []
    for other in islice(known, _MOST_NAMES):
        if len(other) <= _LONGEST:
            matcher.set_seq1(other)
            if matcher.real_quick_ratio() >= cutoff and (bound := matcher.quick_ratio()) >= cutoff:
                alike.append((bound, other))
    return difflib.get_close_matches(name, [other for _, other in nlargest(_COMPARED, alike)], n=most, cutoff=cutoff)


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """An error for a name that is not in `known`, with the nearest names as a suggestion."""
    name, names = str(name), sorted(known)
    near = near_names(name, names)
    rest = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    if said := said_of(kind, name):
        return UnknownNameError(f"there is no {kind} named {name!r}", fix=said)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(names[:_LISTED])}{rest}"
    return UnknownNameError(f"there is no {kind} named {name!r}", fix=hint)
