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
_HERE = __name__.rpartition(".")[0]

#: Of what a way to choose can be told: what is measured, by tensor or block, and is no setting.
MEASURED = ("statistics", "losses", "errors")


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

    @property
    def reads_audit_alone(self) -> bool:
        """Whether it takes nothing that is measured on text, or by a precision study."""
        return not {*MEASURED} & {*self.takes}

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
        registry.add(name, make(name=name, summary=summary, choose=function, **facts), by=function.__module__)
        return function

    return register


def loader(modules: Sequence[str], registry: Callable[[], Registry[C]]) -> Callable[[], None]:
    """Loads the built-in ways, and puts them in the order of `modules`, whichever was imported first."""

    def load() -> None:
        places = {f"{_HERE}.{module}": place for place, module in enumerate(modules)}
        for module in places:
            import_module(module)
        registry().sort(lambda item: places.get(item.choose.__module__, len(places)))

    return load
