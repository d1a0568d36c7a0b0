"""Help: what every word, chart, metric, rule and alarm means."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request
from fastapi.responses import HTMLResponse

from tailwise.app.help_texts import topic, topics
from tailwise.app.page_context import PageContext, context_of

router = APIRouter(include_in_schema=False)
Given = Annotated[PageContext, Depends(context_of)]
KINDS = {"term": "Words", "chart": "Charts", "metric": "Metrics", "rule": "Rules", "alarm": "Alarms of training"}


@router.get("/help")
def help_page(request: Request, context: Given, q: str = "") -> HTMLResponse:
    """All topics, by kind; those that hold all words of a search."""
    words = q.lower().split()
    matching = [one for one in topics().values() if all(word in _text(one) for word in words)]
    groups = {title: [one for one in matching if one.kind == kind] for kind, title in KINDS.items()}
    return context.pages.page(request, "help.html", {"area": "Help", "groups": groups, "q": q, "total": len(matching)})


def _text(one: object) -> str:
    return str(one).lower()


@router.get("/help/{name}")
def one_topic(request: Request, context: Given, name: str) -> HTMLResponse:
    """One topic."""
    return context.pages.page(request, "topic.html", {"area": "Help", "topic": topic(name)})
