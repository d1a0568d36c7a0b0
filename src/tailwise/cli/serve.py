"""`tailwise serve`."""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Annotated

import typer

from tailwise.core.errors import UsageError
from tailwise.core.optional import how_to_get, missing

_NEEDED = ("fastapi", "uvicorn", "jinja2", "altair", "vl_convert")
_ADDRESS, _LIMITS = "Address", "Limits"


def serve(
    where: Annotated[
        list[str] | None, typer.Argument(metavar="[AUDIT|DIR|STORE]...",
                                         help="Audits, folders with audits and plans, and a history; this folder."),
    ] = None,
    store: Annotated[
        str | None,
        typer.Option(metavar="WHERE", envvar="TAILWISE_STORE", help="The history: a file, or postgresql://…"),
    ] = None,
    host: Annotated[
        str, typer.Option(help="Beyond 127.0.0.1 a token is needed.", rich_help_panel=_ADDRESS)
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.", rich_help_panel=_ADDRESS)] = 8440,
    token: Annotated[
        str | None,
        typer.Option(envvar="TAILWISE_TOKEN", help="Every visitor is asked for it; `new` makes one.",
                     rich_help_panel=_ADDRESS),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option("--name", metavar="HOST", help="A host name under which it is called.", rich_help_panel=_ADDRESS),
    ] = None,
    browser: Annotated[bool, typer.Option("--open", help="Open a browser.", rich_help_panel=_ADDRESS)] = False,
    read_only: Annotated[
        bool, typer.Option("--read-only", help="No audits, uploads and tags.", rich_help_panel=_LIMITS)
    ] = False,
    no_hub: Annotated[
        bool, typer.Option("--no-hub", help="No audits of models on the Hub.", rich_help_panel=_LIMITS)
    ] = False,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Matrices at once in an audit.", rich_help_panel=_LIMITS)
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="Where tags, uploads and the queue are kept ($TAILWISE_STATE).",
                                  rich_help_panel=_LIMITS),
    ] = None,
) -> None:  # fmt: skip
    """Open the web app over audits, comparisons, histories and plans."""
    absent = missing(*_NEEDED)
    if absent:
        raise UsageError(f"the app needs {', '.join(absent)}", fix=how_to_get("app"))
    from importlib.resources import files

    from tailwise.app.addresses import free_port, place_of, split
    from tailwise.app.server import serve as run
    from tailwise.app.settings import AppSettings, default_state
    from tailwise.app.workspace.workspace import Workspace

    made = token == "new"  # noqa: S105 - a word, not a token
    if made:
        token = secrets.token_urlsafe(24)
    state_folder = (state or default_state()).expanduser().resolve()
    settings = AppSettings(
        host=host, port=free_port(host, port), token=token, names=tuple(names or ()), state=state_folder,
        read_only=read_only, hub=not no_hub, workers=workers,
    )  # fmt: skip
    roots, history = split(where or ["."], store)
    try:
        (state_folder / "audits").mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"nothing can be kept there: {error.strerror or error}", where=state_folder,
                         fix="choose another folder with --state") from error  # fmt: skip
    example = Path(str(files("tailwise.app") / "example" / "pycode-8m.audit"))
    workspace = Workspace(
        [*roots, state_folder / "audits"], store=history, example=example if example.is_file() else None
    )
    address = place_of(settings)
    typer.echo(f"tailwise: {address}  (Ctrl-C ends it)", err=True)
    if made:  # one that was given is known, and has no place in a log
        typer.echo(f"tailwise: the token is {token}", err=True)
    if browser:
        typer.launch(address)
    run(workspace, settings)
