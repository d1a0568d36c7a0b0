"""What comes back for a question: text, where it links to, and the facts behind it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

#: What a function of the assistant gives: plain JSON types, small.
Fact = dict[str, Any]


@dataclass(frozen=True)
class Link:
    """A page that an answer speaks of."""

    text: str
    href: str

    def to_json(self) -> dict[str, str]:
        """Plain JSON types."""
        return {"text": self.text, "href": self.href}


@dataclass(frozen=True)
class Answer:
    """An answer. Names from files are escaped in `text`; whoever draws it must not let HTML through all the same."""

    text: str  # Markdown; links as [text](/models/…)
    links: tuple[Link, ...] = ()
    facts: tuple[Fact, ...] = ()  # results of functions that the text was made from
    unverified: tuple[str, ...] = ()  # numbers of the text that are in no fact, as they are written there

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return {"text": self.text, "links": [link.to_json() for link in self.links], "facts": list(self.facts),
                "unverified": list(self.unverified)}  # fmt: skip
