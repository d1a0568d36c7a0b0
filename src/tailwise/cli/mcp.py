"""`tailwise mcp [DIR…]`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.shared_options import comma_list
from tailwise.cli.store_options import Store
from tailwise.core.errors import UnreadableError, UsageError

if TYPE_CHECKING:
    from tailwise.app.assistant.writing import PlanOrder, Verbs
    from tailwise.audits.audit import Audit
    from tailwise.compression.plans.plan import Plan

_HTTP, _WHAT = "Over HTTP", "What agents may do"
_TOKEN = "TAILWISE_MCP_TOKEN"  # noqa: S105 - the name of the variable


def mcp(
    roots: Annotated[
        list[str] | None, typer.Argument(metavar="[DIR...]", help="Folders with audits and plans; this one by default.")
    ] = None,
    store: Store = None,
    http: Annotated[
        bool, typer.Option("--http", help="Listen on HTTP; standard input and output otherwise.", rich_help_panel=_HTTP)
    ] = False,
    host: Annotated[str, typer.Option(help="Where to listen.", rich_help_panel=_HTTP)] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0: any free one.", rich_help_panel=_HTTP)] = 8008,
    allow_host: Annotated[
        str | None,
        typer.Option(metavar="A,B", help="Other names under which clients reach it.", rich_help_panel=_HTTP),
    ] = None,
    token_env: Annotated[
        str, typer.Option(metavar="NAME", help="Environment variable with the bearer token.", rich_help_panel=_HTTP)
    ] = _TOKEN,
    allow_write: Annotated[
        bool,
        typer.Option("--allow-write", help="Also audit models below DIR, and keep audits and plans in the first DIR.",
                     rich_help_panel=_WHAT),
    ] = False,
) -> None:  # fmt: skip
    """Let agents look into audits, plans and runs over the Model Context Protocol.

    Reads only, and only below the folders given. Over HTTP it listens to this machine alone; anything else takes a
    bearer token, from the environment variable TAILWISE_MCP_TOKEN.
    """
    from tailwise.app.assistant.mcp_server import require_mcp, serve_stdio, server_of
    from tailwise.app.workspace.workspace import Workspace
    from tailwise.checkpoints.formats.torch_pickle import pickles_refused

    require_mcp()
    workspace = Workspace(roots or ["."], store=store)
    if allow_write and not workspace.roots[0].is_dir():
        raise UsageError("there is no folder to write into", where=workspace.roots[0], fix="give a folder first")
    server = server_of(workspace, _verbs() if allow_write else None)
    with pickles_refused():  # models that agents name are read as those of the app are
        if not http:
            serve_stdio(server)
            return
        from tailwise.app.assistant.mcp_http import ListenAddress, serve_http

        if token_env != _TOKEN and not os.environ.get(token_env):
            raise UsageError(f"the environment has no {token_env}", where="--token-env", fix="set it to a long secret")
        address = ListenAddress(host, port, comma_list(allow_host), os.environ.get(token_env) or None)
        serve_http(server, address, lambda url: typer.echo(f"tailwise: listening on {url}; Ctrl-C ends it", err=True))


def _verbs() -> Verbs:
    from tailwise.app.assistant.writing import Verbs

    return Verbs(_audit, _plan)


def _audit(model: Path, randomize: bool) -> Audit:
    """By a process of its own, as the app has it: a model that fills the memory does not take the server with it."""
    from tailwise.app.jobs.job import Job
    from tailwise.app.jobs.process import JobProcess
    from tailwise.audits.audit import Audit

    with tempfile.TemporaryDirectory() as made:
        target = Path(made) / "made.audit"
        running = JobProcess(Job("mcp", str(model), str(target), {"randomize": randomize}), None)
        _, said = running.follow(lambda _step: None)
        if not target.is_file():
            raise UnreadableError(said.removeprefix("tailwise: ")[-1000:] or "could not be audited", where=model)
        return Audit.load(target)


def _plan(audit: Audit, order: PlanOrder) -> Plan:
    from tailwise.cli.plan_shared import Windows, text_of
    from tailwise.cli.shared_options import solver_to_stderr

    text = text_of([str(order.calibration)] if order.calibration else None, Windows(), "cpu")
    even = "uniform" if order.allocator == "auto" else order.allocator
    with solver_to_stderr():
        if order.kind == "prune":
            from tailwise.compression.making.request import Request
            from tailwise.compression.trying.planned import planned

            return planned(audit, Request(order.amount, even), allocator=order.allocator, text=text)
        from tailwise.app.assistant.functions.plans import FORMATS
        from tailwise.compression.making.request import QuantizeRequest
        from tailwise.compression.trying.planned import planned

        request = QuantizeRequest(bits=order.amount, formats=FORMATS, allocator=even)
        return planned(audit, request, allocator=order.allocator, text=text)
