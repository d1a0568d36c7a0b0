"""Answers that take long: they hold no thread of the server, are few at once, and end with it."""

import asyncio
import threading

import pytest

from tailwise.app import event_stream as events
from tailwise.app.assistant.endpoint import Endpoint
from tailwise.app.assistant.events import TextDelta
from tailwise.app.pages import assistant

QUESTION = {"messages": [{"role": "user", "content": "hello"}]}


@pytest.fixture
def endpoint(monkeypatch):
    """An endpoint that is never asked: `chat` is another."""
    monkeypatch.setattr(assistant, "_endpoint", lambda: Endpoint("http://127.0.0.1:9/v1", "m"))
    return lambda chat: monkeypatch.setattr(assistant, "chat", chat)


def test_a_stream_ends_with_the_server_though_its_source_does_not():
    leave, ending, begun = threading.Event(), threading.Event(), threading.Event()

    def forever():
        yield b"first"
        begun.set()
        leave.wait(60)
        yield b"late"

    async def follow():
        found = []
        async for chunk in events.from_a_thread(forever, ending):
            found.append(chunk)
            await asyncio.to_thread(begun.wait, 30)
            ending.set()
        return found

    assert asyncio.run(follow()) == [b"first"]
    leave.set()


def test_a_source_is_left_when_nobody_listens_any_more():
    given, more, closed = [], threading.Event(), threading.Event()

    def source():
        try:
            for number in range(1000):
                given.append(number)
                yield b"x"
                more.wait(30)
        finally:
            closed.set()

    async def follow():
        stream = events.from_a_thread(source, threading.Event())
        await anext(stream)
        await stream.aclose()
        more.set()

    asyncio.run(follow())
    assert closed.wait(30)
    assert len(given) <= 2


def test_too_many_answers_at_once_are_refused_and_places_come_back(client, app, endpoint):
    endpoint(lambda *arguments: iter([TextDelta("a")]))
    answers = app.state.context.answers
    for _ in range(8):
        answers.acquire()
    assert "too many answers" in client.post("/assistant/ask", json=QUESTION).text
    for _ in range(8):
        answers.release()
    for _ in range(20):
        assert '"text": "a"' in client.post("/assistant/ask", json=QUESTION).text


def test_an_answer_that_fails_is_said_to(client, app, endpoint):
    def broken(*arguments):
        yield TextDelta("\ud800")
        raise RuntimeError("unforeseen")

    endpoint(broken)
    for _ in range(20):
        text = client.post("/assistant/ask", json=QUESTION).text
        assert "something went wrong" in text
        assert "unforeseen" not in text


def test_the_tries_of_an_endpoint_are_counted(client, endpoint):
    endpoint(lambda *arguments: iter([TextDelta("ready")]))
    answers = [client.post("/settings/try") for _ in range(70)]
    assert "It answers." in answers[0].text
    assert answers[-1].status_code == 400


def test_a_long_answer_comes_back_with_the_next_question(client):
    messages = [{"role": "assistant", "content": "a" * 40_000}, *QUESTION["messages"]]
    assert client.post("/assistant/ask", json={"messages": messages}).status_code == 200
