"""Every pattern that goes over what a client or a file says takes time in line with it, as does what stands for others.

No time is measured: patterns are looked at, and what took minutes fails by not coming to its end.
"""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from linear import problems

import tailwise
from tailwise.app.assistant.answers import answer
from tailwise.app.assistant.chat import without_thoughts
from tailwise.app.assistant.markdown import own_links, plain
from tailwise.app.assistant.numbers import unverified
from tailwise.app.assistant.question_wording import Wording
from tailwise.app.assistant.readings import reading_of
from tailwise.app.assistant.replies.question import Question
from tailwise.app.assistant.screen import ShownPage

HOME = Path(tailwise.__file__).parent
CALLS = {"compile", "search", "match", "fullmatch", "sub", "subn", "findall", "finditer", "split"}
#: Where parts of wordings are compiled, each of which is looked at where it is written.
MADE_THERE = {"tailwise.app.assistant.question_wording"}


def patterns() -> Iterator[tuple[str, str, str]]:
    """Where one is written in the app, by which function it is used, and the pattern itself."""
    for file in sorted((HOME / "app").rglob("*.py")):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        name = ".".join(file.relative_to(HOME.parent).with_suffix("").parts).removesuffix(".__init__")
        if name in MADE_THERE:
            continue
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
        kept = {
            id(node.value): node.targets[0].id
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
        }
        for node in calls:
            called = ast.unparse(node.func)
            if called.startswith("re.") and called[3:] in CALLS:
                uses = {f"{kept[id(node)]}.{call}" for call in CALLS} if id(node) in kept else set()
                used = {one.func.attr for one in calls if ast.unparse(one.func) in uses} or {called[3:]}
                for call in used:
                    yield f"{name}:{node.lineno}", call, _value(name, node.args[0])
            elif called == "Wording" or (called == "_words" and name.endswith(".intents")):
                for part in (part for way in node.args[called == "_words" :] for part in _parts(name, way)):
                    yield f"{name}:{node.lineno}", "search", part


def _value(module: str, node: ast.expr) -> str:
    """A pattern as its module has it; a `NameError` where that is only known as it runs: give it a name there."""
    return str(eval(compile(ast.Expression(node), module, "eval"), vars(importlib.import_module(module))))


def _parts(module: str, node: ast.expr) -> list[str]:
    return [] if isinstance(node, ast.Starred) else _value(module, node).split(".*")


def test_every_pattern_of_the_app_takes_time_in_line():
    found = list(patterns())
    assert len(found) > 150
    assert {f"{where} {pattern}": wrong for where, call, pattern in found if (wrong := problems(pattern, call))} == {}


@pytest.mark.parametrize(
    "pattern",
    [
        r"\b(which|show)\b[^?]*\b(layers?|roles?)\b.*\b(have|has)\b",
        r"\b(?:layers?|h)[\s._#]*(?:no\.?|number)?\s*(\d{1,5})\b",
        r"[a-z_0-9]*[a-z][a-z_0-9]*",
        r"[A-Za-z]\w*\s*(?:<=|>=)\s*\S+",
        r"<think>.*?</think>",
        r"[^\n;:]*?,? (?:and|…) \d",
        r"\s*~\s*",
        r"\b[A-Za-z]{2,}\d{3}\b",
        r"^\W*\S+\W*$",
        r"a(?:[a]*x)?",
        r"(?:\w+x)*",
        r"(?:a|a){0,90}b",
        r"(?:a{0,9}){0,90}b",
    ],
)
def test_one_that_does_not_is_found(pattern):
    assert problems(pattern)


LONG = 200_000
TEXTS = [
    ("show " * 140 + "role " * 130 + " h" * 2000)[:2000],
    "layer" + " " * 1994,
    "1" * 2000,
    "what is a" + " mean" * 398 + "x",
    "difference between " * 105,
    "compare a and " + "?" * 1900 + "x",
    "?" * 1999,
    "is alpha below " * 133,
]


@pytest.mark.parametrize("question", TEXTS, ids=range(len(TEXTS)))
def test_a_question_is_gone_through_as_often_as_there_are_wordings_and_no_oftener(made, monkeypatch, question):
    looked = []
    monkeypatch.setattr(Wording, "fits", _counting(looked, Wording.fits))
    assert answer(question, made.workspace, ShownPage()).text
    assert sum(map(len, looked)) < 100 * len(question)


def _counting(looked, fits):
    def counted(self, text):
        looked.append(text)
        return fits(self, text)

    return counted


@pytest.mark.parametrize(
    "work",
    [
        lambda: without_thoughts("<think>" * LONG),
        lambda: unverified("a, " * LONG, [{"values": [1]}]),
        lambda: unverified("block 1" + " " * LONG + "1 " * 1000, [{"values": [1]}]),
        lambda: unverified("a" + "-" * LONG, [{"values": [1]}]),
        lambda: plain("`" * LONG),
        lambda: own_links("[a](/" + "](/" * 1000),
        lambda: reading_of("which layers " * 20_000),
        lambda: Wording("a.*b.*c").fits("a" * LONG + "b" * LONG),
    ],
    ids=range(8),
)
def test_what_would_take_minutes_comes_to_its_end(work):
    work()


@pytest.mark.parametrize(
    ("ways", "text", "fits"),
    [
        ((r"\blow\b.*rank",), "is a low effective rank good", True),
        ((r"\blow\b.*rank",), "is a rank low", False),
        ((r"a.*b.*c", r"d"), "a c b c", True),
        ((r"a.*b.*c", r"d"), "c b a", False),
        ((r"a.*b.*c", r"d"), "d", True),
        ((r"low|small.*rank",), "small rank", True),
        ((r"low|small.*rank",), "small", False),
        ((r"aa.*a",), "aa", False),
        ((), "anything", False),
    ],
)
def test_parts_of_a_wording_stand_behind_one_another(ways, text, fits):
    assert Wording(*ways).fits(text) is fits


@pytest.mark.parametrize(
    ("text", "left"),
    [
        ("a <think>b</think> c <think>d</think>", "a  c "),
        ("a <think>b", "a <think>b"),
        ("</think> a <think>b</think>", "</think> a "),
        ("<think>a <think>b</think> c</think>", " c</think>"),
    ],
)
def test_thoughts_go_as_far_as_they_end(text, left):
    assert without_thoughts(text) == left
    assert re.sub(r"(?s)<think>.*?</think>", "", text) == left


def test_names_are_found_whole(made):
    question = Question("compare models-x, model2 and model, please", None)
    from tailwise.app.assistant.replies.question import _at

    assert question.lower[_at(question.lower, "Model") :] == "model, please"
    assert _at("a-model", "model") == -1
