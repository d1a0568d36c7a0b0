"""The assistant: questions about what is on screen, and its settings."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from markupsafe import Markup
from pydantic import BaseModel, Field
from starlette.responses import StreamingResponse

from tailwise.app.assistant.answers import EXAMPLES, answer
from tailwise.app.assistant.chat import chat
from tailwise.app.assistant.endpoint import Endpoint, forget, load
from tailwise.app.assistant.events import Answered, Event, Failed, to_json
from tailwise.app.assistant.prompt import system_prompt
from tailwise.app.assistant.screen import ShownPage
from tailwise.app.before_the_body import CheckedRoute, check_first
from tailwise.app.event_stream import from_a_thread, stream
from tailwise.app.page_context import PageContext, context_of
from tailwise.app.settings import is_loopback
from tailwise.core.errors import TailwiseError, UsageError

if TYPE_CHECKING:
    from markdown_it import MarkdownIt

_log = logging.getLogger(__name__)
router = APIRouter(include_in_schema=False, route_class=CheckedRoute)
Given = Annotated[PageContext, Depends(context_of)]
_LONGEST_QUESTION = 5000  # letters: a sentence is compared with every name and many patterns
Name = Annotated[str, Field(max_length=1000)]


class OnScreen(BaseModel):
    """What the page shows, as the page says it."""

    area: Name = "models"
    audit: Name | None = None
    base: Name | None = None
    layer: Name | None = None
    chart: Name | None = None
    run: Name | None = None
    plan: Name | None = None
    file: Name | None = None
    audits: Annotated[list[Name], Field(max_length=8)] = []

    def screen(self) -> ShownPage:
        """As the assistant takes it."""
        return ShownPage(**{**self.model_dump(), "audits": tuple(self.audits)})


class TypedMessage(BaseModel):
    """One message."""

    role: Literal["user", "assistant"]
    content: str = Field(max_length=50_000)  # answers come back as the talk goes on


class AskedConversation(BaseModel):
    """A conversation whose last message is to be answered."""

    messages: Annotated[list[TypedMessage], Field(min_length=1, max_length=60)]
    screen: OnScreen = OnScreen()


def _endpoint() -> Endpoint | None:
    return Endpoint.from_environment()


@router.post("/assistant/ask")
@check_first(PageContext.check_questions)
async def ask(context: Given, question: AskedConversation) -> StreamingResponse:
    """Server-sent events of one answer: by rules, or by a model where one is set up."""
    if not context.questions.allows():
        raise UsageError("too many questions within a minute", fix="wait a little")
    return stream(from_a_thread(lambda: _events(context, question), context.ending))


def _events(context: PageContext, question: AskedConversation) -> Iterator[bytes]:
    try:
        yield from _answered(context, question)
    except TailwiseError as error:
        yield _sent(Failed(error.what, error.fix or ""))
    except Exception:  # the page waits for an end
        _log.exception("a question was not answered")
        yield _sent(Failed("something went wrong here", "the server's log says more"))


def _answered(context: PageContext, question: AskedConversation) -> Iterator[bytes]:
    screen, endpoint, asked = question.screen.screen(), _endpoint(), question.messages[-1].content
    if len(asked) > _LONGEST_QUESTION:
        yield _sent(Failed(f"a question of {len(asked)} letters is too long", f"ask in {_LONGEST_QUESTION} or less"))
        return
    if not context.answers.acquire(blocking=False):
        yield _sent(Failed("too many answers are being written at once", "ask again when one is done"))
        return
    try:
        if endpoint is None:
            yield _sent(Answered(answer(asked, context.workspace, screen)))
            return
        messages = [{"role": one.role, "content": one.content} for one in question.messages]
        for event in chat(messages, context.workspace, screen, endpoint):
            yield _sent(event)
    finally:
        context.answers.release()


def _sent(event: Event) -> bytes:
    document = to_json(event)
    if isinstance(event, Answered):
        document["html"] = str(drawn(event.answer.text))
        document["answer"].pop("facts")  # the page shows the text; the facts may be large
    if document["kind"] == "result":
        document.pop("fact")
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode(errors="replace")


# Settings


class EndpointTyped(BaseModel):
    """An endpoint as it is typed."""

    base_url: str = Field(max_length=400)
    model: str = Field(max_length=200)
    api_key: str = Field("", max_length=400)


@router.get("/settings")
def settings(request: Request, context: Given, on: Annotated[OnScreen, Query()]) -> HTMLResponse:
    """The endpoint, and the prompt as it is for the page that one comes from."""
    return _page(request, context, on)


def _page(request: Request, context: PageContext, on: OnScreen, message: str = "", status: int = 200) -> HTMLResponse:
    try:
        endpoint, trouble = _endpoint(), ""
    except TailwiseError as error:
        endpoint, trouble = None, str(error)
    values: dict[str, Any] = {
        "area": "", "on": on.model_dump(exclude_none=True), "prompt": system_prompt(context.workspace, on.screen()),
        "endpoint": None if endpoint is None else endpoint.to_client(), "trouble": message or trouble,
        "fixed": not _may_change(context), "kept": _is_kept(), "examples": EXAMPLES,
    }  # fmt: skip
    return context.pages.page(request, "settings.html", values, status)


def _is_kept() -> bool:
    try:
        return load() is not None
    except TailwiseError:
        return True


def _may_change(context: PageContext) -> bool:
    """Whoever sets the address makes this machine connect there: only its own users may."""
    return not context.settings.read_only and is_loopback(context.settings.host)


def _check_change(context: PageContext) -> None:
    if not _may_change(context):
        raise UsageError("the endpoint is not changed from a page here", fix="set it where the server is started")


@router.post("/settings")
@check_first(_check_change)
def keep(request: Request, context: Given, given: Annotated[EndpointTyped, Form()]) -> HTMLResponse:
    """Keep an endpoint."""
    try:
        before = load()
        if before is not None:
            endpoint = before.changed(base_url=given.base_url, model=given.model, api_key=given.api_key or None)
        else:
            endpoint = Endpoint(given.base_url, given.model, given.api_key or None)
        endpoint.save()
    except TailwiseError as error:
        return _page(request, context, OnScreen(), str(error), 400)
    return _page(request, context, OnScreen())


@router.post("/settings/forget")
@check_first(_check_change)
def drop(request: Request, context: Given) -> HTMLResponse:
    """Forget the endpoint and its key: answers are made by rules again."""
    forget()
    return _page(request, context, OnScreen())


@router.post("/settings/try")
async def try_it(request: Request, context: Given) -> HTMLResponse:
    """One question to the endpoint, to see that it answers."""
    if not context.questions.allows():
        raise UsageError("too many questions within a minute", fix="wait a little")
    said = [chunk async for chunk in from_a_thread(lambda: _tried(context), context.ending)]
    return context.pages.page(request, "tried.html", {"said": b"".join(said).decode()})


def _tried(context: PageContext) -> Iterator[bytes]:
    try:
        yield _tried_words(context).encode(errors="replace")
    except TailwiseError as error:
        yield str(error).encode(errors="replace")


def _tried_words(context: PageContext) -> str:
    endpoint = _endpoint()
    if endpoint is None:
        return "No endpoint is set up."
    last = None
    for event in chat([{"role": "user", "content": "Say: ready."}], context.workspace, ShownPage(), endpoint):
        last = event
    return f"{last.message} {last.fix}" if isinstance(last, Failed) else "It answers."


@router.get("/assistant")
def settings_page() -> RedirectResponse:
    """The assistant is on every page; its settings are here."""
    return RedirectResponse("/settings", 303)


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
