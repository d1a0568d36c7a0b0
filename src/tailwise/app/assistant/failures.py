"""What went wrong at an endpoint, and what to do; never with the key."""

from __future__ import annotations

from tailwise.app.assistant.events import Failed
from tailwise.app.assistant.markdown import clean, shorten
from tailwise.app.assistant.endpoint import Endpoint
from tailwise.core.errors import TailwiseError

_MOST = 300


def failure(error: Exception, endpoint: Endpoint) -> Failed:
    """An exception as the last event of a chat."""
    message, fix = _words(error, endpoint)
    if endpoint.api_key:
        message = message.replace(endpoint.api_key, "…")  # servers echo keys that they refuse
    return Failed(shorten(clean(message), _MOST + 100), fix)


def _words(error: Exception, endpoint: Endpoint) -> tuple[str, str]:
    import openai

    where, said = endpoint.base_url, shorten(" ".join(str(getattr(error, "message", error)).split()), _MOST)
    if isinstance(error, TailwiseError):
        return error.what, error.fix or ""
    table: tuple[tuple[type[Exception], str, str], ...] = (
        (openai.APITimeoutError, f"{where} did not answer within {endpoint.timeout:g} s",
         "is the model still loading? try again, or take a smaller one"),
        (openai.APIConnectionError, f"{where} cannot be reached",
         "start the server, and check address and port; it mostly ends in /v1"),
        (openai.AuthenticationError, f"{where} refuses the key: {said}", "give another key in the settings"),
        (openai.PermissionDeniedError, f"{where} forbids it: {said}", "check what the key may do"),
        (openai.NotFoundError, f"{where} has no model {endpoint.model!r}, or is not the address of its API: {said}",
         "check the model's name, and whether the address ends in /v1"),
        (openai.RateLimitError, f"{where} is at its limit: {said}", "wait a little, and try again"),
        (openai.BadRequestError, f"{where} refuses the request: {said}",
         "is the model's window too small for the prompt? take one with 16,000 tokens or more"),
        (openai.APIStatusError, f"{where} failed: {said}", "look at the server's log"),
        (openai.OpenAIError, f"{where} sent what cannot be understood: {said}", "is it an OpenAI-compatible server?"),
        (ValueError, f"{where} sent what cannot be understood: {said}", "is it an OpenAI-compatible server?"),
    )  # fmt: skip
    return next(
        ((text, fix) for kind, text, fix in table if isinstance(error, kind)), (said, "ask again, or in other words")
    )
