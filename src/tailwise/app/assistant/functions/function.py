"""A function of the assistant: it reads, is bounded, and gives plain JSON types and links to the pages it is about."""

from __future__ import annotations

import inspect
import json
import math
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from tailwise.app.assistant.answer import Fact, Link
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.workspace import links
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError, UsageError, unknown_name
from tailwise.core.registry import Registry

_BUILT_IN = ("listing", "audits", "findings", "tables", "comparing", "plans", "explaining", "training")
_TYPES = {str: "string", int: "integer", float: "number", bool: "boolean"}
_LONGEST = 400  # signs of an argument
_LARGEST = 24_000  # signs of a result, as JSON
_DIGITS = 6  # significant ones of a number: more than any answer quotes


@dataclass(frozen=True)
class Place:
    """Where a function looks: the workspace, and what is on screen where an argument is left out."""

    workspace: Workspace
    screen: ShownPage = field(default_factory=ShownPage)

    def audit(self, name: str = "") -> str:
        """The identity of an audit by identity or title; without a name the one on screen, or the only one."""
        entries = self.workspace.entries("audit")
        wanted = name or self.screen.audit or (self.screen.audits[0] if self.screen.audits else "")
        if not wanted and len(entries) == 1:
            return entries[0].id
        if not wanted:
            shown = ", ".join(entry.id for entry in entries[:12])
            raise UsageError("which audit?", fix=f"name one of {shown}" if shown else "make one with `tailwise audit`")
        titled = [entry.id for entry in entries if wanted in (entry.id, entry.title, entry.title.rsplit("/", 1)[-1])]
        return titled[0] if titled else self.workspace.entry(wanted, "audit").id

    def link(self, text: str, href: str) -> dict[str, str]:
        """A link in a fact."""
        return Link(text, href).to_json()

    def to_audit(self, name: str) -> dict[str, str]:
        """The link to an audit's page."""
        return self.link(self.workspace.entry(name, "audit").title, links.model(name))


@dataclass(frozen=True)
class Function:
    """A named function."""

    name: str
    summary: str
    parameters: Mapping[str, Any]  # JSON schema
    call: Callable[..., Fact]

    def schema(self) -> dict[str, Any]:
        """As chat completions take tools."""
        return {"type": "function", "function": {"name": self.name, "description": self.summary,
                                                 "parameters": dict(self.parameters)}}  # fmt: skip


def _load_built_ins() -> None:
    for family in _BUILT_IN:
        import_module(f"tailwise.app.assistant.functions.{family}")


FUNCTIONS: Registry[Function] = Registry("function", "tailwise.assistant_functions", _load_built_ins)


def function(**texts: str) -> Callable[[Callable[..., Fact]], Callable[..., Fact]]:
    """Register the decorated function under its own name.

    Its first parameter is a `Place`; the others are strings, numbers or truth values, each described by `texts`. Its
    docstring is what a model is told of it.
    """

    def register(call: Callable[..., Fact]) -> Callable[..., Fact]:
        hints = typing.get_type_hints(call)
        wanted = list(inspect.signature(call).parameters.values())[1:]
        parameters = {
            "type": "object",
            "properties": {item.name: {"type": _TYPES[hints[item.name]], "description": texts[item.name]}
                           for item in wanted},
            "required": [item.name for item in wanted if item.default is item.empty],
            "additionalProperties": False,
        }  # fmt: skip
        name, summary = call.__name__.rstrip("_"), " ".join((inspect.getdoc(call) or "").split())
        FUNCTIONS.add(name, Function(name, summary, parameters, call), by=call.__module__)
        return call

    return register


def call(name: str, arguments: Mapping[str, Any], place: Place) -> Fact:
    """What a function gives; what goes wrong is a fact too, with `error` and `fix`."""
    if name not in FUNCTIONS:
        return failed(unknown_name("function", name[:80], list(FUNCTIONS)))
    return called(FUNCTIONS[name], arguments, place)


def called(found: Function, arguments: Mapping[str, Any], place: Place) -> Fact:
    """The same of a function at hand."""
    try:
        return within(tidy(found.call(place, **_checked(found, arguments))))
    except TailwiseError as error:
        return failed(error)


def failed(error: TailwiseError) -> Fact:
    """An error as a fact; without where, which may be a path of this machine."""
    return {"error": error.what, **({"fix": error.fix} if error.fix else {})}


def _checked(found: Function, arguments: Mapping[str, Any]) -> dict[str, Any]:
    known, given = found.parameters["properties"], {}
    for name, value in arguments.items():
        if name not in known:
            raise unknown_name(f"argument of {found.name}", str(name), known)
        if value is not None:
            given[name] = _argument(found.name, name, known[name]["type"], value)
    for name in found.parameters["required"]:
        if name not in given:
            raise UsageError(f"{found.name} needs {name}", fix=known[name]["description"])
    return given


def _argument(function: str, name: str, kind: str, value: Any) -> Any:
    """The value as its parameter has it. Models write numbers as text, so text that is a number is taken."""
    wrong = UsageError(f"{name} of {function} is a {kind}, not {str(value)[:40]!r}")
    if kind == "string" and isinstance(value, str):
        return value[:_LONGEST].encode(errors="replace").decode()  # JSON can spell halves of characters
    if kind == "boolean":
        said = {"true": True, "false": False}.get(str(value).lower())
        if said is not None:
            return said
    if kind in ("integer", "number") and not isinstance(value, bool):
        try:
            number = float(value)
        except (TypeError, ValueError, OverflowError):
            raise wrong from None
        if math.isfinite(number) and (kind == "number" or number.is_integer()):
            return int(number) if kind == "integer" else number
    raise wrong


def tidy(value: Any) -> Any:
    """Plain JSON types; numbers with six significant digits, and null for what is not finite."""
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}") if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): tidy(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [tidy(item) for item in value]
    return value if value is None or isinstance(value, str | int | bool) else str(value)


def within(fact: Fact, most: int = _LARGEST) -> Fact:
    """The same fact, its longest list cut until all fits; `left_off` says how many items of which list are missing."""
    left: dict[str, int] = {}
    while len(json.dumps(fact, ensure_ascii=False)) > most:
        lists = {key: value for key, value in fact.items() if isinstance(value, list) and len(value) > 1}
        if not lists:
            return {"error": "the result is too large", "fix": "ask for less: one layer, or fewer columns"}
        key = max(lists, key=lambda name: len(json.dumps(lists[name])))
        kept = len(lists[key]) // 2
        left[key] = left.get(key, 0) + len(lists[key]) - kept
        fact = {**fact, key: lists[key][:kept], "left_off": {**fact.get("left_off", {}), **left}}
    return fact
