"""Text that came from a file, safe inside Markdown; and Markdown without its marks."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from tailwise.app.assistant.answer import Fact, Link

_SPECIAL = re.compile(r"([\\`*_\[\]#|~$])")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
# Bounded, so that a text of nothing but brackets takes no time; the longest link of ours is well below.
_LINK = re.compile(r"(?<!\\)\[((?:\\.|[^\]\\]){0,450})\]\(((?:\\.|[^)\\\s]){0,2000})\)")
_LONGEST = 200


def escape(text: object, most: int = _LONGEST) -> str:
    """A name as it is, where Markdown and HTML would give its signs a meaning; control signs become �."""
    shown = shorten(clean(str(text)), most)
    return _SPECIAL.sub(r"\\\1", "".join(_ENTITIES.get(sign, sign) for sign in shown))


def clean(text: str) -> str:
    """Without signs that move the cursor, change direction or cannot be seen."""
    return "".join("�" if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") else sign for sign in text)


def clean_lines(text: str) -> str:
    """The same for text of several lines."""
    return "\n".join(clean(line.replace("\t", "    ")) for line in text.split("\n"))


def shorten(text: str, most: int = _LONGEST) -> str:
    """At most so many signs."""
    return text if len(text) <= most else text[: most - 1] + "…"


def prose(text: object) -> str:
    """The same for a sentence that has names from files in it."""
    return escape(text, 900)


def link(text: object, href: str) -> str:
    """`[text](href)`; `href` is one of the workspace's links, which are quoted."""
    return f"[{escape(text)}]({href.replace('(', '%28').replace(')', '%29')})"


def own_links(text: str) -> str:
    """Markdown of a language model, with links to pages of this workspace alone.

    Pictures go, and links elsewhere become their text: with what a file made a model say, an address could carry data
    out as soon as the text is drawn.
    """
    bare = re.sub(r"(?<!!)!+(?=\[)", "", clean_lines(text))
    bare = re.sub(r"(?m)^[ ]{0,3}\[[^\]\n]{0,600}\]:.*", "", bare)  # definitions of links
    bare = re.sub(r"<(?=[a-zA-Z/!?])", "&lt;", bare)
    return _LINK.sub(lambda match: match[0] if _is_own(match[2]) else match[1], bare)


def _is_own(address: str) -> bool:
    outside = address[:1] != "/" or address[1:2] in ("/", "\\")
    return not outside and not any(sign == ")" or sign.isspace() for sign in address)


def plain(text: str) -> str:
    """Markdown as text for a terminal: no marks, no addresses, no escapes."""
    bare = _LINK.sub(r"\1", re.sub(r"(?m)^```.*\n?", "", text))
    bare = re.sub(r"(?<!\\)(\*\*|`)", "", bare)
    bare = re.sub(r"\\([\\`*_\[\]#|~$])", r"\1", bare)
    for sign, entity in reversed(_ENTITIES.items()):
        bare = bare.replace(entity, sign)
    return bare


def links_in(answers: Iterable[Fact]) -> tuple[Link, ...]:
    """The pages that facts point to, inner ones too, each once, in order."""
    links: dict[str, Link] = {}
    for item in (item for fact in answers for item in _links(fact)):
        links.setdefault(item["href"], Link(item["text"], item["href"]))
    return tuple(links.values())


def _links(value: Any) -> Iterator[dict[str, str]]:
    if isinstance(value, dict):
        yield from value.get("links", ())
        for key, item in value.items():
            if key != "links":
                yield from _links(item)
    elif isinstance(value, list):
        for item in value:
            yield from _links(item)
