"""What the person who asks has before them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ShownPage:
    """Where in the app, or on which files of the command line, a question is asked. Names are the workspace's."""

    area: str = "models"  # models, layers, charts, compare, base, training, plans, help, settings
    audit: str | None = None
    base: str | None = None  # audit that `audit` is held against
    layer: str | None = None  # full name of a matrix of `audit`
    chart: str | None = None
    run: str | None = None
    plan: str | None = None
    file: str | None = None  # a comparison or a precision study
    audits: tuple[str, ...] = ()  # side by side
