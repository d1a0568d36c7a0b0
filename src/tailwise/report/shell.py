"""What every page shares: one file without network, its policy, its style, its script, and Vega."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import lru_cache
from html import escape
from importlib.resources import files
from typing import Any

from tailwise.core.harmless import visible

#: Nothing may be fetched from anywhere; the page's own script and style are all there is.
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

#: Key, title and HTML of one part of a page; a part without HTML is left out.
Section = tuple[str, str, str]


def whole_page(title: str, top: str, sections: Sequence[Section], *, data: str, version: str) -> str:
    """The page as HTML: `top` is its header, `data` the script elements that its script reads."""
    title, top, data = visible(title), visible(top), visible(data)
    sections = [(key, name, visible(text)) for key, name, text in sections]
    body = "".join(f'<h2 id="{key}">{escape(name)}</h2>{text}' for key, name, text in sections if text)
    links = "".join(f'<a href="#{key}">{escape(name)}</a>' for key, name, text in sections if text)
    made = f"Made by tailwise {escape(version)}. One file, no network: keep it, mail it, print it."
    return (
        f'<!doctype html><html lang="en" data-theme="light"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>tailwise: {escape(title)}</title>'
        f"<style>{asset('report.css')}</style></head><body>"
        f'<nav aria-label="Sections"><div><span>{links}</span><button id="theme" type="button" '
        f'aria-label="Change the theme">Dark</button></div></nav>{top}<main>'
        f"<noscript><p>What is said in words stands here as text; charts and table need JavaScript.</p></noscript>"
        f"{body}</main><footer>{made}</footer>{data}"
        f"<script>{bundle()}</script><script>{asset('figures.js')}{asset('report.js')}</script></body></html>"
    )


def asset(name: str) -> str:
    """A file of the package as text."""
    return (files("tailwise.report.assets") / name).read_text(encoding="utf-8")


@lru_cache(maxsize=1)
def bundle() -> str:
    """Vega, Vega-Lite and Vega-Embed as one script, with the notices that their licences ask for."""
    import vl_convert

    # A page's script ends at the first "</script", even inside a string.
    source: Any = vl_convert.javascript_bundle  # its type stub asks for a snippet that is optional
    return f"/*!\n{asset('NOTICES.txt')}*/\n" + str(source()).replace("</script", "<\\/script")


def layer_table(columns: Sequence[tuple[str, str, bool]]) -> str:
    """The table of all layers, which the script fills, sorts and filters; columns are (key, title, is text)."""
    head = "".join(
        f'<th scope="col" data-column="{escape(key)}"{" class=text" if is_text else ""}>'
        f'<button type="button">{escape(title)}</button></th>'
        for key, title, is_text in columns
    )
    shown = escape(json.dumps([key for key, _, _ in columns]), quote=True)
    return (
        '<div class="controls"><input id="filter" type="search" placeholder="Filter by name, role, status …" '
        'aria-label="Filter the table"><button id="back" type="button">Back</button>'
        '<button id="next" type="button">Next</button><span class="quiet" id="count" aria-live="polite"></span>'
        f'</div><div class="scroll" tabindex="0"><table id="layer-table" data-columns="{shown}">'
        f"<thead><tr>{head}</tr></thead>"
        "<tbody></tbody></table></div>"
    )
