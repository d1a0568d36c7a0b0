"""A rule: a named judgement of a subject, which is an audit or a run, with its causes, remedies and thresholds."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any, ClassVar, Generic, Required, TypedDict, TypeVar

from tailwise.core.registry import Registry
from tailwise.judging.diagnosis.finding import Strength
from tailwise.judging.thresholds import Threshold, of_rule

Subject = TypeVar("Subject")
Said = TypeVar("Said")


class RuleParts(TypedDict, total=False):
    """What the decorator of every kind of rule is told; tuples of lines, but for the first two."""

    title: Required[str]
    strength: Required[Strength]  # how well the rule itself is founded
    causes: Required[Iterable[str]]
    remedies: Required[Iterable[str]]
    references: Required[Iterable[str]]
    needs: Iterable[str]  # metrics without which it is not asked
    functions: Iterable[str]  # names in `tailwise.remedies` that do what a remedy says


@dataclass(frozen=True, kw_only=True)
class Rule(Generic[Subject, Said]):
    """A named judgement: `judge` takes the subject and gives what the rule says of it."""

    severities: ClassVar[tuple[str, ...]] = ()  # the mildest first
    example: ClassVar[str] = ""  # a code of this kind

    code: str
    title: str
    family: str
    summary: str  # the sign that it looks for
    severity: str
    strength: Strength
    needs: tuple[str, ...] = ()
    causes: tuple[str, ...]
    remedies: tuple[str, ...]
    functions: tuple[str, ...] = ()
    references: tuple[str, ...]
    judge: Callable[[Subject], Said]

    @property
    def asks_for(self) -> tuple[str, ...]:
        """Everything without which it is not asked."""
        return self.needs

    @property
    def thresholds(self) -> list[Threshold]:
        """The rows of the table that it compares with."""
        return of_rule(self.code)

    @property
    def built_in(self) -> bool:
        """Whether it came with the package."""
        return self.judge.__module__.startswith("tailwise.")


R = TypeVar("R", bound=Rule[Any, Any])
Judge = TypeVar("Judge", bound=Callable[..., Any])


def registered(registry: Registry[R], kind: type[R], code: str, **parts: Any) -> Callable[[Judge], Judge]:
    """A decorator that registers a function as the rule `code` (two capital letters or more, then three digits).

    Its docstring is the rule's summary and its module the family. Raises `TypeError` for a code or a severity of
    another form, and for parts that `kind` lacks or does not know.
    """
    if not re.fullmatch(r"[A-Z]{2,}\d{3}", code):
        raise TypeError(f"{code!r} is not a code such as {kind.example}")
    if parts["severity"] not in kind.severities:
        raise TypeError(f"the severity of {code} is {parts['severity']!r}; it is one of {', '.join(kind.severities)}")
    listed = {name: tuple(dict.fromkeys(parts[name])) for name in _LISTS & parts.keys()}

    def register(function: Judge) -> Judge:
        family = function.__module__.rsplit(".", 1)[-1].removeprefix("alarm_rules_")
        summary = " ".join((inspect.getdoc(function) or "").split())
        registry.add(code, kind(code=code, family=family, summary=summary, judge=function, **{**parts, **listed}),
                     by=function.__module__)  # fmt: skip
        return function

    return register


_LISTS = frozenset({"needs", "scalars", "causes", "remedies", "functions", "references"})


def load(registry: Registry[R], modules: Iterable[str]) -> None:
    """Import the modules of built-in rules, and put those in the order of their codes."""
    for module in modules:
        import_module(module)
    # A family that was imported on its own before, or a third party's rule, must not come first.
    registry.sort(lambda item: int(item.code[-3:]) if item.built_in else 1000)
