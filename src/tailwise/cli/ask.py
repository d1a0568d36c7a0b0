"""`tailwise ask [AUDIT|DIR] "question"`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.shared_options import Json
from tailwise.cli.store_options import Store
from tailwise.core.errors import UnreachableError, UsageError

if TYPE_CHECKING:
    from tailwise.app.assistant.answer import Answer
    from tailwise.app.assistant.endpoint import Endpoint
    from tailwise.app.assistant.screen import ShownPage
    from tailwise.app.workspace.workspace import Workspace

_ABOUT, _WHO = "About what", "Who answers"


def ask(
    parts: Annotated[
        list[str],
        typer.Argument(metavar="[AUDIT|DIR]... QUESTION", help="Audits or folders, and the question; of two audits, "
                       "the first is the base."),
    ],
    store: Store = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="The matrix meant.", rich_help_panel=_ABOUT)] = None,
    run: Annotated[str | None, typer.Option(metavar="NAME", help="The run meant.", rich_help_panel=_ABOUT)] = None,
    base_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="OpenAI-compatible endpoint; or set TAILWISE_ASSISTANT_URL.",
                     rich_help_panel=_WHO),
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="Its model; or set TAILWISE_ASSISTANT_MODEL.", rich_help_panel=_WHO)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="Environment variable with its key; TAILWISE_ASSISTANT_KEY by default.",
                     rich_help_panel=_WHO),
    ] = None,
    offline: Annotated[
        bool, typer.Option("--offline", help="No language model, whatever is configured.", rich_help_panel=_WHO)
    ] = False,
    show_prompt: Annotated[
        bool, typer.Option("--show-prompt", help="Print what a language model is told, and end.", rich_help_panel=_WHO)
    ] = False,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Ask about audits, plans and training runs.

    Without an endpoint, answers come from the guidance, the findings and the numbers at hand, and are the same each
    time. With one, a language model answers, which may look things up; numbers that it has from nowhere are marked.
    """
    from tailwise.app.assistant.answers import answer
    from tailwise.app.workspace.workspace import Workspace

    roots, question = parts[:-1], parts[-1]
    if not question.strip():
        raise UsageError("there is no question", fix='tailwise ask x.audit "which layers are worst?"')
    if not roots and Path(question).exists():
        raise UsageError(
            "there is no question", where=question, fix=f'tailwise ask {question} "which layers are worst?"'
        )
    if roots and not Path(roots[0]).exists() and Path(question).exists():
        raise UsageError(
            f"{roots[0]!r} stands where audits do", fix=f'the question comes last: … {question} "{roots[0]}"'
        )
    workspace = Workspace(roots or ["."], store=store)
    screen = _screen(workspace, layer, run)
    if show_prompt:
        from tailwise.app.assistant.prompt import system_prompt

        typer.echo(system_prompt(workspace, screen))
        return
    endpoint = None if offline else _endpoint(base_url, model, api_key_env)
    reply = answer(question, workspace, screen) if endpoint is None else _talked(
        question, (workspace, screen), endpoint, quiet=as_json
    )  # fmt: skip
    if as_json:
        sys.stdout.write(json.dumps(reply.to_json(), ensure_ascii=False, indent=1) + "\n")
        return
    if endpoint is None:
        from tailwise.app.assistant.markdown import plain

        typer.echo(plain(reply.text))
    if reply.unverified:
        typer.echo(f"tailwise: in no result: {', '.join(reply.unverified)}", err=True)


def _screen(workspace: Workspace, layer: str | None, run: str | None) -> ShownPage:
    from tailwise.app.assistant.screen import ShownPage

    files = [entry for root in workspace.roots for entry in workspace.entries("audit") if entry.path == root]
    entries = files or workspace.entries("audit")
    plans = [entry.id for root in workspace.roots for entry in workspace.entries("plan") if entry.path == root]
    audit = entries[-1].id if files or len(entries) == 1 else None
    base = files[0].id if len(files) == 2 else None
    return ShownPage(audit=audit, base=base, layer=layer, run=run, plan=plans[0] if plans else None)


def _endpoint(base_url: str | None, model: str | None, api_key_env: str | None) -> Endpoint | None:
    from tailwise.app.assistant.endpoint import Endpoint

    endpoint = Endpoint.from_environment(base_url=base_url, model=model, api_key_env=api_key_env)
    if endpoint is None and (model or api_key_env):
        raise UsageError("no endpoint is given", fix="add --base-url, such as http://127.0.0.1:8000/v1")
    return endpoint


def _talked(question: str, about: tuple[Workspace, ShownPage], endpoint: Endpoint, *, quiet: bool) -> Answer:
    """The answer of a language model, written as it comes."""
    from tailwise.app.assistant.chat import Answered, Failed, TextDelta, ToolCall, chat
    from tailwise.app.assistant.markdown import clean, clean_lines

    for event in chat([{"role": "user", "content": question}], *about, endpoint):
        match event:
            case TextDelta(text) if not quiet:
                typer.echo(clean_lines(text), nl=False)
            case ToolCall(name, arguments):
                typer.echo(
                    clean(f"tailwise: looks up {name} {json.dumps(arguments, ensure_ascii=False)[:200]}"), err=True
                )
            case Failed(message, fix):
                raise UnreachableError(message, fix=fix)
            case Answered(found):
                if not quiet:
                    typer.echo("")
                return found
            case _:
                pass
    raise AssertionError("a chat ends with Answered or Failed")
