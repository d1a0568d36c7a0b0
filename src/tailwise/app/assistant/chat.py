"""`chat()`: a language model behind an OpenAI-compatible endpoint, with the read-only functions as its tools."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, cast

from tailwise.app.assistant.answer import Answer, Fact
from tailwise.app.assistant.endpoint import Endpoint
from tailwise.app.assistant.events import Answered, AnswerEndedError, Event, Failed, TextDelta, ToolCall, ToolResult
from tailwise.app.assistant.functions.function import FUNCTIONS, Place, call
from tailwise.app.assistant.markdown import clean, links_in, own_links, shorten
from tailwise.app.assistant.numbers import unverified
from tailwise.app.assistant.prompt import prompt_facts, system_prompt
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import TailwiseError, UsageError
from tailwise.core.optional import how_to_get, missing
from tailwise.core.storage import json_of

if TYPE_CHECKING:
    from openai import OpenAI, Stream
    from openai.types.chat import ChatCompletionChunk

__all__ = ["Answered", "Event", "Failed", "TextDelta", "ToolCall", "ToolResult", "chat"]

_ROUNDS = 6  # of tool calls, before the model has to answer with what it has
_CALLS = 8  # in one round
_SECONDS = 600.0  # for all of an answer
_MESSAGES = 24
_MESSAGE = 8_000  # signs of one
_TEXT = 40_000  # signs of an answer
_CONNECT = 10.0  # seconds
_THOUGHT, _THOUGHT_ENDS = "<think>", "</think>"  # of models that think aloud, where no server takes it out


@dataclass
class _AskedTools:
    """A call as its parts come in."""

    id: str = ""
    name: str = ""
    arguments: str = ""

    def parsed(self) -> dict[str, Any] | None:
        """The arguments, or None for what is no JSON object."""
        try:
            document = json_of(self.arguments or "{}")
        except ValueError:
            return None
        return document if isinstance(document, dict) else None


@dataclass
class _Talk:
    """A conversation in progress."""

    client: OpenAI
    endpoint: Endpoint
    place: Place
    messages: list[Any]
    text: str = ""
    facts: list[Fact] = field(default_factory=list)
    calls: list[_AskedTools] = field(default_factory=list)  # of this round
    until: float = 0.0
    tools: bool = True


def chat(
    messages: Sequence[Mapping[str, str]], workspace: Workspace, screen: ShownPage, endpoint: Endpoint
) -> Iterator[Event]:
    """Answer the last of `messages` (`role`: user or assistant, `content`), as the model writes it.

    The last event is `Answered` or `Failed`; nothing is raised for what goes wrong at the endpoint. Deltas are the
    model's own text, to be shown as text; the answer in `Answered` has no links but to pages of the workspace.
    """
    if missing("openai"):
        yield Failed("a language model is asked through the package openai", how_to_get("assistant"))
        return
    import openai

    prompt, known = system_prompt(workspace, screen), prompt_facts(workspace, screen)
    until = time.monotonic() + _SECONDS
    with _client(endpoint, until) as client:
        try:
            told = [{"role": "system", "content": prompt}, *_told(messages)]
            talk = _Talk(client, endpoint, Place(workspace, screen), told, until=until)
            talk.tools = endpoint.tools
            yield from _rounds(talk)
        except (openai.OpenAIError, UsageError, ValueError, AnswerEndedError) as error:
            yield failure(error, endpoint)
            return
        except RuntimeError:  # a second try by the library, of a client that was closed
            if time.monotonic() < until:
                raise
            yield failure(AnswerEndedError("the answer took too long"), endpoint)
            return
    looked_up = tuple(talk.facts)
    text = own_links(without_thoughts(talk.text).strip())
    pages = tuple(page for page in links_in(looked_up) if f"]({page.href})" in text)
    yield Answered(Answer(text, pages, looked_up, unverified(text, (*looked_up, *known))))


def without_thoughts(text: str) -> str:
    """The text without what stands between marks of thoughts; of one that does not end, all stays."""
    parts, at = [], 0
    while (begin := text.find(_THOUGHT, at)) >= 0 and (end := text.find(_THOUGHT_ENDS, begin)) >= 0:
        parts.append(text[at:begin])
        at = end + len(_THOUGHT_ENDS)
    return "".join([*parts, text[at:]])


@contextmanager
def _client(endpoint: Endpoint, until: float) -> Iterator[OpenAI]:
    """A client that is closed at the end, or when the time is over: a head may come a byte at a time."""
    client = _opened_client(endpoint, until)
    over = threading.Timer(max(0.0, until - time.monotonic()), client.close)
    over.daemon = True
    over.start()
    try:
        with client:
            yield client
    finally:
        over.cancel()


def _opened_client(endpoint: Endpoint, until: float) -> OpenAI:
    import openai

    from tailwise.app.assistant.bounded_stream import bounded

    # No proxy to this machine, no redirects that could take a key elsewhere, and no headers of another account.
    own = openai.DefaultHttpxClient(
        trust_env=not endpoint.local,
        follow_redirects=False,
        headers={"Accept-Encoding": "identity"},
        event_hooks={"response": [partial(bounded, until=until)]},
    )
    return openai.OpenAI(
        base_url=endpoint.base_url,
        api_key=endpoint.api_key or "none",
        timeout=openai.Timeout(endpoint.timeout, connect=_CONNECT),
        max_retries=1,
        http_client=own,
        default_headers={"OpenAI-Organization": openai.omit, "OpenAI-Project": openai.omit},  # type: ignore[dict-item]
    )


def _told(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """The newest messages of people and of the model; no other role is let through."""
    told = [item for item in messages if item.get("role") in ("user", "assistant") and item.get("content")]
    if not told or told[-1]["role"] != "user":
        raise UsageError("there is no question", fix="end the messages with one of the role user")
    return [{"role": item["role"], "content": item["content"][:_MESSAGE]} for item in told[-_MESSAGES:]]


def _rounds(talk: _Talk) -> Iterator[Event]:
    for number in range(_ROUNDS + 1):
        talk.calls, before = [], len(talk.text)
        yield from _one_round(talk, last=number == _ROUNDS)
        if not talk.calls:
            break
        yield from _called(talk, before)
    if not talk.text.strip():
        raise AnswerEndedError("the model gave no answer")


def _one_round(talk: _Talk, *, last: bool) -> Iterator[Event]:
    import openai

    try:
        stream = _opened(talk, tools=talk.tools and not last)
    except (openai.BadRequestError, openai.UnprocessableEntityError, openai.InternalServerError):
        if not talk.tools or talk.facts:
            raise
        # Servers without tool calls refuse the request, some with a 500. The prompt has what is on screen.
        talk.tools = False
        stream = _opened(talk, tools=False)
    with stream:
        for chunk in stream:
            if time.monotonic() > talk.until:
                raise AnswerEndedError("the answer took too long")
            if len(talk.text) + sum(len(asked.arguments) for asked in talk.calls) > _TEXT:
                raise AnswerEndedError("the answer has no end")
            yield from _part(talk, chunk)


def _opened(talk: _Talk, *, tools: bool) -> Stream[ChatCompletionChunk]:
    more: Any = {"tools": [item.schema() for _, item in FUNCTIONS.items()]} if tools else {}
    made = talk.client.chat.completions.create(model=talk.endpoint.model, messages=talk.messages, stream=True, **more)
    return cast("Stream[ChatCompletionChunk]", made)


def _part(talk: _Talk, chunk: ChatCompletionChunk) -> Iterator[Event]:
    try:
        said = _taken(talk, chunk)
    except (AttributeError, TypeError, IndexError) as error:  # of another shape than the library says
        raise AnswerEndedError("the answer is not made as those of the interface are") from error
    if said:
        yield TextDelta(said)


def _taken(talk: _Talk, chunk: ChatCompletionChunk) -> str:
    """Put a piece of an answer to what came before; its text."""
    if not chunk.choices or chunk.choices[0].delta is None:  # usage alone; and servers that send no delta at the end
        return ""
    delta = chunk.choices[0].delta
    said = delta.content or ""
    talk.text += said
    for piece in delta.tool_calls or ():
        index = piece.index if piece.index is not None else len(talk.calls)
        if not index >= 0:
            raise IndexError(index)
        # Some servers give every call the index 0: a new id with a name begins a new call.
        if index < len(talk.calls) and piece.id and talk.calls[index].id not in ("", piece.id):
            index = len(talk.calls)
        while len(talk.calls) <= min(index, _CALLS):
            talk.calls.append(_AskedTools())
        asked = talk.calls[min(index, _CALLS)]
        asked.id = "" + (piece.id or asked.id)  # as below, what is no text is a TypeError
        if piece.function is not None:
            asked.name += piece.function.name or ""
            asked.arguments += piece.function.arguments or ""
    return said


def _called(talk: _Talk, before: int) -> Iterator[Event]:
    """Answer the calls of a round whose text begins at `before`."""
    calls = [asked for asked in talk.calls[:_CALLS] if asked.name]
    for number, asked in enumerate(calls):
        asked.id = asked.id or f"call_{len(talk.facts)}_{number}"
    said = [{"id": asked.id, "type": "function", "function": {"name": asked.name, "arguments": asked.arguments or "{}"}}
            for asked in calls]  # fmt: skip
    talk.messages.append({"role": "assistant", "content": talk.text[before:], "tool_calls": said})
    for asked in calls:
        arguments = asked.parsed()
        yield ToolCall(asked.name, arguments or {})
        fact = call(asked.name, arguments, talk.place) if arguments is not None else _NO_JSON
        talk.facts.append(fact)
        yield ToolResult(asked.name, fact)
        body = json.dumps(fact, ensure_ascii=False)
        talk.messages.append({"role": "tool", "tool_call_id": asked.id, "content": body})


_NO_JSON: Fact = {"error": "the arguments are no JSON object", "fix": 'write them as {"name": "value"}'}


_MOST = 300


def failure(error: Exception, endpoint: Endpoint) -> Failed:
    """An exception as the last event of a chat."""
    message, fix = _words(error, endpoint)
    if endpoint.api_key:
        message = message.replace(endpoint.api_key, "…")  # servers echo keys that they refuse
    return Failed(shorten(clean(message), _MOST + 100), fix)


def _words(error: Exception, endpoint: Endpoint) -> tuple[str, str]:
    import openai

    where, message = endpoint.base_url, shorten(" ".join(str(getattr(error, "message", error)).split()), _MOST)
    if isinstance(error, TailwiseError):
        return error.what, error.fix or ""
    table: tuple[tuple[type[Exception] | tuple[type[Exception], ...], str, str], ...] = (
        (openai.APITimeoutError, f"{where} did not answer within {endpoint.timeout:g} s",
         "is the model still loading? try again, or take a smaller one"),
        (openai.APIConnectionError, f"{where} cannot be reached",
         "start the server, and check address and port; it mostly ends in /v1"),
        (openai.AuthenticationError, f"{where} refuses the key: {message}", "give another key in the settings"),
        (openai.PermissionDeniedError, f"{where} forbids it: {message}", "check what the key may do"),
        (openai.NotFoundError, f"{where} has no model {endpoint.model!r}, or is not the address of its API: {message}",
         "check the model's name, and whether the address ends in /v1"),
        (openai.RateLimitError, f"{where} is at its limit: {message}", "wait a little, and try again"),
        (openai.BadRequestError, f"{where} refuses the request: {message}",
         "is the model's window too small for the prompt? take one with 16,000 tokens or more"),
        (openai.APIStatusError, f"{where} failed: {message}", "look at the server's log"),
        ((openai.OpenAIError, ValueError), f"{where} sent what cannot be understood: {message}",
         "is it an OpenAI-compatible server?"),
    )  # fmt: skip
    return next(
        ((text, fix) for kind, text, fix in table if isinstance(error, kind)), (message, "ask again, or in other words")
    )
