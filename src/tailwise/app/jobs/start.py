"""From a wish to a job: what may be audited, and where the audit goes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, Field

from tailwise.app.jobs.job import Job
from tailwise.app.jobs.outputs import words_of
from tailwise.app.page_context import PageContext
from tailwise.core.errors import UsageError
from tailwise.spectrum.power_law import estimator_names

_HUB = re.compile(r"(hf://)?[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,120})?")

if TYPE_CHECKING:
    EstimatorName = str
else:
    EstimatorName = Literal[*estimator_names()]


class Wish(BaseModel):
    """An audit that someone asks for."""

    model: str = Field(max_length=1000, min_length=1)  # a path below a root, or a Hugging Face id
    base: str = Field("", max_length=1000)  # for an adapter: the model that it adapts
    estimator: EstimatorName = "ks"
    randomize: bool = False
    bootstrap: int = Field(0, ge=0, le=1000)


def start(context: PageContext, wish: Wish) -> Job:
    """Put an audit into the queue.

    Raises `UsageError` for what is neither below a root nor an id of the Hub, on a read-only server, where too many
    were started within a minute, and where the queue is full.
    """
    context.check_writable()
    model = _named(context, wish.model.strip())
    options: dict[str, Any] = {"estimator": wish.estimator, "randomize": wish.randomize, "bootstrap": wish.bootstrap}
    if wish.base.strip():
        options["base"] = _named(context, wish.base.strip())
    if not context.starts.allows():
        raise UsageError("too many audits were started within a minute", fix="wait a little")
    words = words_of(Path(model.rstrip("/")).name, "model")
    return context.queue.add(model, context.settings.state / "audits" / f"{words}.audit", options)


def _named(context: PageContext, text: str) -> str:
    if "\0" in text:
        raise UsageError("is no path", where=text.replace("\0", "␀"))
    try:
        return str(context.workspace.confined(text))
    except UsageError:
        if not _HUB.fullmatch(text) or ".." in text:
            raise
    if not context.settings.hub:
        raise UsageError("models of the Hub are not audited here", where=text, fix="start the server without --no-hub")
    return text if text.startswith("hf://") else f"hf://{text}"
