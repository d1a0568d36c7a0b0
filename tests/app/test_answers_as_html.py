"""Answers as HTML hold text and links to our own pages."""

import pytest

pytest.importorskip("fastapi")

from tailwise.app.pages.assistant import drawn


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[x](javascript:alert(1))",
        "[x](https://evil.example/)",
        "[x](//evil.example)",
        "[x](/\\evil.example)",
        "![x](/models)",
        "![x](https://evil.example/p.png)",
        "<https://evil.example>",
        "[x]: https://evil.example\n\n[x]",
        "[x](data:text/html,1)",
    ],
)
def test_nothing_leaves_the_page(text):
    html = str(drawn(text))
    for bad in (
        "<script",
        "<img",
        'href="http',
        'href="//',
        'href="/\\',
        'href="/%5C',
        'javascript:alert(1)"',
        'href="data',
    ):
        assert bad not in html


def test_links_to_our_pages_and_tables_are_drawn():
    html = str(drawn("[layer](/models/a/layer?name=x) **bold**\n\n| a |\n|---|\n| 1 |"))
    assert '<a href="/models/a/layer?name=x">layer</a>' in html
    assert "<strong>bold</strong>" in html
    assert "<table>" in html
