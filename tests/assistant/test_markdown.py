"""Names in Markdown, and Markdown of a language model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tailwise.app.assistant.markdown import clean, escape, link, own_links, plain

HOSTILE = "<script>alert(1)</script>](javascript:x) `code` **b** _i_ # h | ~~s~~ \\ &amp; $m$"


def test_a_name_comes_back_from_its_escape():
    assert plain(escape(HOSTILE)) == HOSTILE
    assert "<" not in escape(HOSTILE)


@given(st.text(max_size=150))
def test_any_name_survives_and_opens_no_tag(name):
    assert plain(f"- {escape(name)} -") == f"- {clean(name)} -"
    assert "<" not in escape(name)


def test_signs_that_hide_or_move_are_shown():
    assert escape("a\x1b[31mb\u202ec\nd\u200be") == "a�\\[31mb�c�d�e"


def test_a_long_name_is_cut():
    assert len(escape("x" * 10_000)) <= 200


def test_links_keep_their_brackets():
    assert link("a]b", "/models/x(1)") == "[a\\]b](/models/x%281%29)"
    assert plain(link("a]b", "/x")) == "a]b"


@pytest.mark.parametrize(("given", "left"), [
    ("see [alpha](/help/alpha)", "see [alpha](/help/alpha)"),
    ("![x](https://evil/?q=secret)", "x"),
    ("![x](/models/y)", "[x](/models/y)"),
    ("[x](https://evil)", "x"),
    ("[x](//evil)", "x"),
    ("[x](/\\evil)", "x"),
    ("[x](javascript:alert(1))", "x)"),
    ("[x]: https://evil", ""),
    ("[x]:\n  https://evil", "\n  https://evil"),
    (r"[a\](/x](https://evil)", r"a\](/x"),
    ("<img src=x>", "&lt;img src=x>"),
    ("<https://evil>", "&lt;https://evil>"),
    ("2 < 3", "2 < 3"),
])  # fmt: skip
def test_a_models_links_stay_inside(given, left):
    assert own_links(given) == left


def test_code_fences_go_in_a_terminal():
    assert plain("a\n\n```bash\ntailwise x\n```\n") == "a\n\ntailwise x\n"
