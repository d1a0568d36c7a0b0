"""What a way to choose is, of amounts and of number formats alike: its name, what it can be told, what it looks at."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Generic, TypeVar

from tailwise.core.errors import UsageError
from tailwise.core.registry import Registry

F = TypeVar("F", bound=Callable[..., Any])
C = TypeVar("C", bound="Chooser[Any]")
S = TypeVar("S")


@dataclass(frozen=True)
class Chooser(Generic[F]):
    """A named way to spend a budget."""

    name: str
    summary: str
    source: str
    takes: tuple[str, ...]  # fields of its settings that it reads
    needs: tuple[str, ...]  # metrics of the candidates that are fitted for it: alpha, variance
    choose: F

    @property
    def needs_alpha(self) -> bool:
        """Whether α is fitted for it."""
        return "alpha" in self.needs

    def settings(self, make: Callable[..., S], given: Mapping[str, Any], **more: Any) -> S:
        """What it is told; `UsageError` for what it does not take."""
        for name in given:
            if name not in self.takes:
                takes = ", ".join(self.takes) or "nothing"
                raise UsageError(f"{self.name} does not take {name}", fix=f"leave it out; {self.name} takes {takes}")
        return make(**more, **given)


def registered(registry: Registry[C], make: Callable[..., C], name: str, **facts: Any) -> Callable[[F], F]:
    """A decorator that registers a function; the first line of its docstring is the summary."""

    def register(function: F) -> F:
        summary = (inspect.getdoc(function) or "").split("\n", 1)[0]
        registry.add(name, make(name=name, summary=summary, choose=function, **facts))
        return function

    return register


def loader(modules: Sequence[str], names: Sequence[str], registry: Callable[[], Registry[C]]) -> Callable[[], None]:
    """Loads the built-in ways, and puts them in the order of `names`."""

    def load() -> None:
        for module in modules:
            import_module(f"tailwise.compression.choosing.{module}")
        place = {name: index for index, name in enumerate(names)}
        registry().sort(lambda item: place.get(item.name, len(place)))

    return load
