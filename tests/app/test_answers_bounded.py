"""Questions take time within bounds, whatever names an audit holds and however many ask."""

from __future__ import annotations

import json
import random
from dataclasses import replace

import pytest

from tailwise.app import server
from tailwise.app.assistant import layer_names
from tailwise.app.page_context import PageContext
from tailwise.app.pages.assistant import AskedConversation, _events
from tailwise.core import errors
from tailwise.core.errors import UsageError, near_names, unknown_name


def test_near_names_are_as_of_difflib():
    names = [f"model.layers.{n}.self_attn.q_proj" for n in range(99)] + ["lm_head"]
    assert near_names("model.layers.7.self_attn.q_prj", names, 1) == ["model.layers.7.self_attn.q_proj"]
    assert near_names("lm_hed", names) == ["lm_head"]
    assert near_names("quite another", names) == []


def test_long_and_many_names_are_not_compared_letter_by_letter(monkeypatch):
    compared = []
    real = errors.difflib.get_close_matches
    monkeypatch.setattr(
        errors.difflib,
        "get_close_matches",
        lambda name, names, **how: compared.append(names) or real(name, names, **how),
    )
    letters = random.Random(1)
    names = ["".join(letters.choices("abcdefgh", k=length)) for length in (5000, 200) for _ in range(300)]
    near_names("".join(letters.choices("abcdefgh", k=200)), names)
    unknown_name("layer", "a" * 5000, names)
    assert all(len(listed) <= 50 and max(map(len, listed), default=0) <= 300 for listed in compared)


def first_audit(app):
    workspace = app.state.context.workspace
    return workspace.audit(next(entry.id for entry in workspace.entries("audit") if "broken" not in entry.title))


def test_few_words_of_a_question_are_looked_for(monkeypatch, app):
    asked = []
    monkeypatch.setattr(layer_names, "near_names", lambda word, *_: asked.append(word) or [])
    audit = first_audit(app)
    layer_names.meant_in(" ".join(f"a{n}.b{n}" for n in range(500)), audit)
    assert len(asked) == 5


def test_a_name_nearly_right_is_still_told(app):
    audit = first_audit(app)
    name = next(row.name for row in audit.rows if "." in row.name)
    assert layer_names.meant_in(f"why is {name}?", audit).rows[0].name == name
    wrong = replace(audit.rows[0], name=name).name.replace("e", "ee", 1) + "x"
    assert name in layer_names.meant_in(f"why is {wrong} so", audit).trouble


def said(context: PageContext, text: str) -> str:
    asked = AskedConversation.model_validate({"messages": [{"role": "user", "content": text}]})
    return b"".join(_events(context, asked)).decode()


def test_a_question_of_many_letters_is_told(app):
    assert "too long" in said(app.state.context, "a.b " * 5000)


def test_answers_by_rules_are_so_many_at_once(app):
    context = app.state.context
    held = 0
    while context.answers.acquire(blocking=False):
        held += 1
    try:
        assert "at once" in said(context, "what is alpha?")
    finally:
        context.answers.release(held)
    assert "at once" not in said(context, "what is alpha?")
    assert json.loads(said(context, "what is alpha?").removeprefix("data: "))["kind"]


@pytest.mark.parametrize("limited", [True, False])
def test_a_limit_of_addresses_that_the_engine_of_charts_does_not_bear_is_told(monkeypatch, limited):
    class Ended:
        returncode = -5

    monkeypatch.setattr(server, "is_limited", lambda: limited)
    monkeypatch.setattr(server.subprocess, "run", lambda *_, **__: Ended())
    if not limited:
        server._check_room()
        return
    with pytest.raises(UsageError, match="limit of addresses"):
        server._check_room()


def test_templates_are_read_before_they_are_asked_for(app):
    environment = app.state.context.pages._environment
    assert len(environment.cache) >= len(environment.list_templates(extensions=["html"]))
    assert not environment.auto_reload
