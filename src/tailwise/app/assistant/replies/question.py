"""A question, where it is asked, and the facts that were looked up for it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from tailwise.app.assistant.answer import Fact
from tailwise.app.assistant.functions.function import Place, call
from tailwise.app.assistant.layer_names import Meant, meant_in
from tailwise.core.errors import TailwiseError

#: Titles that are ordinary words of a question are no mention of an audit.
_ORDINARY = frozenset({
    "alpha", "audit", "audits", "base", "before", "best", "better", "block", "blocks", "chart", "compare", "finetune",
    "fine-tune", "good", "head", "layer", "layers", "model", "models", "new", "old", "plan", "plans", "prune",
    "quantize", "run", "runs", "show", "test", "train", "training", "worst", "worse",
})  # fmt: skip


class CannotAnswerError(Exception):
    """What stands in the way of an answer, and what would help."""

    def __init__(self, what: str, fix: str = "") -> None:
        super().__init__(what)
        self.what, self.fix = what, fix


@dataclass
class Question:
    """Asked by a person, in the words that they chose."""

    text: str
    place: Place
    facts: list[Fact] = field(default_factory=list)

    @cached_property
    def lower(self) -> str:
        """In small letters, with single spaces."""
        return " ".join(self.text.lower().split())

    def ask(self, function: str, **arguments: Any) -> Fact:
        """What a function gives, kept among the facts. `CannotAnswerError` where it cannot."""
        fact = call(function, arguments, self.place)
        if "error" in fact:
            raise CannotAnswerError(fact["error"], fact.get("fix", ""))
        self.facts.append(fact)
        return fact

    def audit(self) -> str:
        """The audit that the question is about."""
        named = self.mentioned()
        return self.place.audit(named[0] if len(named) == 1 else "")

    def has_audit(self) -> bool:
        """Whether one is meant, by name, by the screen, or as the only one."""
        try:
            self.audit()
        except TailwiseError:
            return False
        return True

    def mentioned(self) -> list[str]:
        """Audits that the question names by title or identity, in the order of the words."""
        place_of: dict[str, int] = {}
        for entry in self.place.workspace.entries("audit"):
            names = {entry.id, entry.title, entry.title.rsplit("/", 1)[-1]}
            places = [
                at
                for name in names
                if len(name) > 2 and name.lower() not in _ORDINARY and (at := _at(self.lower, name)) >= 0
            ]
            if places:
                place_of[entry.id] = min(places)
        return sorted(place_of, key=lambda name: place_of[name])

    def titled(self, words: str) -> str | None:
        """The audit of exactly that identity or title, in small letters."""
        entries = self.place.workspace.entries("audit")
        return next((entry.id for entry in entries if words in (entry.id, entry.title.lower())), None)

    def layers(self) -> Meant:
        """The layers that it is about: those it names, else, where it says "this layer", the one on screen."""
        audit = self.place.workspace.audit(self.audit())
        meant = meant_in(self.text, audit)
        onscreen = self.place.screen.layer
        if (
            not meant.rows
            and not meant.trouble
            and onscreen
            and re.search(r"\b(this|it|layer|matrix|here)\b", self.lower)
        ):
            rows = tuple(row for row in audit.rows if row.name == onscreen)
            return Meant(rows, onscreen)
        return meant


def _at(text: str, name: str) -> int:
    """Where a text has a name that is not a part of a longer one; -1 where nowhere."""
    name, at = name.lower(), -1
    while (at := text.find(name, at + 1)) >= 0:
        before, behind = text[max(at - 1, 0) : at], text[at + len(name) :][:1]
        if not (before.isalnum() or before in tuple("_.-") or behind.isalnum() or behind in tuple("_-")):
            return at
    return -1
