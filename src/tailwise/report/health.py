"""The verdict on a model, as terminals, files and pages show it."""

from __future__ import annotations

import re
from collections.abc import Callable
from html import escape

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from tailwise.core.harmless import as_code
from tailwise.judging.diagnosis.finding import Health, WorstLayer

STYLES = {"healthy": "bold green", "needs a look": "bold yellow", "unhealthy": "bold red", "no verdict": "bold cyan"}
#: What no reading of weights says, of a model that is healthy by them.
LIMIT = "That is of the weights; how well it answers only a text tells: `tailwise evaluate MODEL --text TEXT`."
#: The class of a page's verdict.
LEVELS = {"healthy": "good", "needs a look": "warning", "unhealthy": "error", "no verdict": "info"}


def line(health: Health) -> Text:
    """One line."""
    return Text.assemble((health.word.upper(), STYLES[health.word]), ": ", health.why)


def terminal(health: Health, path: str, ran: str = "") -> RenderableType:
    """The line, the worst layers with their reasons, and the next command, unless that is what was `ran`."""
    parts: list[RenderableType] = [line(health)]
    if health.worst:
        parts.append(Text(health.worst_words, style="dim"))
    for item in health.worst:
        more = f" ({item.beside})" if item.more else ""
        said = Text.assemble((item.layer, "bold"), f"  {item.code}  {item.reason}{more}")
        parts.append(Padding(said, (0, 0, 0, 2)))
        if item.stands:
            parts.append(Padding(Text(item.stands, style="dim"), (0, 0, 0, 4)))
    if health.word == "healthy":
        parts.append(Text(LIMIT.replace("`", ""), style="dim"))
    if health.next != ran:
        parts.append(Text(f"next: {health.next_for(path)}", style="dim"))
    return Group(*parts)


def markdown(health: Health, path: str) -> list[str]:
    """The same for an issue or a wiki."""
    lines = [f"**{health.word.capitalize()}**: {health.why}", *([LIMIT] if health.word == "healthy" else []), ""]
    lines += [health.worst_words, ""] if health.worst else []
    lines += [f"- {as_code(item.layer)} ({item.code}): {item.reason}" for item in health.worst]
    return [*lines, *([""] if health.worst else []), f"Next: `{health.next_for(path)}`", ""]


def _stands(item: WorstLayer) -> str:
    return f' <span class="quiet">{escape(item.stands)}</span>' if item.stands else ""


def _beside(item: WorstLayer) -> str:
    return f' <span class="quiet">({escape(item.beside)})</span>' if item.more else ""


def html(health: Health, path: str, link: Callable[[str], str]) -> str:
    """The line, the worst layers and the next command, for a page; `link` makes HTML of a layer's name."""
    worst = "".join(
        f"<li>{link(item.layer).rstrip()}: {escape(item.reason)}{_stands(item)}{_beside(item)}</li>"
        for item in health.worst
    )
    return (
        f'<p class="health {LEVELS[health.word]}"><b>{escape(health.word.capitalize())}</b> {_code(health.why)}</p>'
        + (f'<p class="quiet">{_code(LIMIT)}</p>' if health.word == "healthy" else "")
        + (f'<p class="quiet">{escape(health.worst_words)}</p><ol class="worst">{worst}</ol>' if worst else "")
        + _next(health, path)
    )


def _code(text: str) -> str:
    """Text as HTML, with what stands in backquotes as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _next(health: Health, path: str) -> str:
    """The next command, where the page that it would make is not this one."""
    command = health.next_for(path)
    if command.startswith("tailwise report"):
        command = command.replace("tailwise report", "tailwise check", 1) + " --init -o gates.toml"
        return f'<p class="quiet">To hold later versions against this one: <code>{escape(command)}</code></p>'
    if command.startswith("tailwise diagnose") and "--base" not in command:
        return ""
    return f'<p class="quiet">Next: <code>{escape(command)}</code></p>'
