"""Markdown of an answer → HTML that holds nothing but text, lists, tables, code and links to our own pages."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from markdown_it import MarkdownIt


@lru_cache(maxsize=1)
def _parser() -> MarkdownIt:
    from markdown_it import MarkdownIt

    parser = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["image", "html_block", "html_inline"])
    parser.validateLink = _is_ours  # type: ignore[method-assign, assignment]  # that is how it is set
    return parser


def _is_ours(address: str) -> bool:
    return address.startswith("/") and not address.lower().startswith(("//", "/\\", "/%5c"))


def drawn(text: str) -> Markup:
    """The HTML of an answer. HTML in it becomes text, and links elsewhere stay text."""
    return Markup(_parser().render(text))  # noqa: S704 - the parser escapes
