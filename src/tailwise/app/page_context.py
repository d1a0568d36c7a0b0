"""What the pages share: the workspace, the settings, the queue, tags, and the templates."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fastapi import Request

from tailwise.app.guard import Rate
from tailwise.app.settings import AppSettings
from tailwise.app.workspace.workspace import Workspace
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.app.jobs.queue import Queue
    from tailwise.app.overviews import Overviews
    from tailwise.app.rendering import Pages
    from tailwise.app.tags import Tags


@dataclass(frozen=True)
class PageContext:
    """Everything that a request may need."""

    workspace: Workspace
    settings: AppSettings
    pages: Pages
    overviews: Overviews
    tags: Tags
    queue: Queue
    logins: Rate
    starts: Rate
    questions: Rate
    ending: threading.Event = field(default_factory=threading.Event)  # set as soon as the server is to end
    #: One upload at a time, from before its first byte until it is kept: disk, and memory to read it, are for one.
    uploading: threading.Lock = field(default_factory=threading.Lock)
    #: Answers at once, by rules or of a model: each holds a thread for as long as it takes, whoever has left meanwhile.
    answers: threading.BoundedSemaphore = field(default_factory=lambda: threading.BoundedSemaphore(8))

    def check_writable(self) -> None:
        """`UsageError` on a server that takes nothing."""
        if self.settings.read_only:
            raise UsageError("this server is read-only", fix="start it without --read-only")

    def check_starts(self) -> None:
        """The same, and where too many audits were started within a minute."""
        self.check_writable()
        if self.starts.full:
            raise UsageError("too many audits were started within a minute", fix="wait a little")

    def check_questions(self) -> None:
        """`UsageError` where too many questions came within a minute."""
        if self.questions.full:
            raise UsageError("too many questions within a minute", fix="wait a little")


def context_of(request: Request) -> PageContext:
    """The context of the app that a request came to."""
    context: PageContext = request.app.state.context
    return context
