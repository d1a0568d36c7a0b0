"""`tailwise check AUDIT`."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.audit_inputs import check_text_target, is_audit, read_all
from tailwise.cli.shared_options import Device, Json, Workers
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.judging.gates.expectation import CheckResult

_WHAT, _OUT = "What to expect", "Output"


def check(
    audit: Annotated[str, typer.Argument(help="An audit, or a model, which is audited first.")],
    expect: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="What is expected.", rich_help_panel=_WHAT)
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(metavar="AUDIT", help="Of expectations on change; goes before the file's.", rich_help_panel=_WHAT),
    ] = None,
    init: Annotated[
        bool,
        typer.Option("--init", help="Write expectations that this audit meets, to -o.", rich_help_panel=_WHAT),
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="FILE.toml", help="Where --init writes.", rich_help_panel=_OUT),
    ] = None,
    junit: Annotated[str | None, typer.Option(metavar="FILE.xml", help="JUnit XML.", rich_help_panel=_OUT)] = None,
    sarif: Annotated[str | None, typer.Option(metavar="FILE", help="SARIF 2.1.0.", rich_help_panel=_OUT)] = None,
    markdown: Annotated[
        str | None, typer.Option(metavar="FILE.md", help="A comment for a pull request.", rich_help_panel=_OUT)
    ] = None,
    model_card: Annotated[
        str | None, typer.Option(metavar="FILE.md", help="A section for a model card.", rich_help_panel=_OUT)
    ] = None,
    badge: Annotated[str | None, typer.Option(metavar="FILE.svg", help="A badge.", rich_help_panel=_OUT)] = None,
    device: Device = "cpu",
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Hold an audit against expectations; made for continuous integration.

    Ends with 0 where all hold, 1 where one does not, 2 for a wrong request, 3 for what cannot be read.
    """
    if init:
        _write_initial(audit, output, expect, device, workers)
        return
    if expect is None:
        raise UsageError("there is nothing to expect", fix="give --expect FILE.toml, or write one with --init")
    if output is not None:
        raise UsageError("-o belongs to --init", fix="use --junit, --sarif, --markdown, --model-card or --badge")
    from tailwise.judging.gates.checking import check as check_audit
    from tailwise.judging.gates.parse import read_expectations

    files = {"junit": junit, "sarif": sarif, "markdown": markdown, "model_card": model_card, "badge": badge}
    _check_targets(files)
    read = read_expectations(expect)
    audited, base = _read(audit, baseline, device, workers)
    result = check_audit(audited, read, baseline=base)
    for kind, path in files.items():
        if path is not None:
            write_whole(path, _writers()[kind](result, audited).encode())
    _say(result, as_json)
    if os.environ.get("GITHUB_ACTIONS") == "true":
        from tailwise.judging.gates.github import workflow_commands

        for line in workflow_commands(result):
            typer.echo(line, err=as_json)
    raise typer.Exit(result.exit_code)


def _read(audit: str, baseline: str | None, device: str, workers: int | None) -> tuple[Audit, Audit | None]:
    if baseline is None:
        return read_all([audit], randomize=False, device=device, workers=workers)[0], None
    base, audited = read_all([baseline, audit], randomize=False, device=device, workers=workers)
    return audited, base


def _write_initial(audit: str, output: str | None, expect: str | None, device: str, workers: int | None) -> None:
    from tailwise.judging.gates.init import initial_expectations, is_beside, relative_to

    if expect is not None:
        raise UsageError("--init makes expectations and --expect uses them", fix="give one of the two")
    if output is not None:
        check_text_target(output, (".toml",))
    audited = read_all([audit], randomize=False, device=device, workers=workers)[0]
    folder = str(Path(output).parent) if output else "."
    baseline = relative_to(audit, folder) if is_audit(audit) else None
    text = initial_expectations(audited, baseline=baseline)
    if output is None:
        sys.stdout.write(text)
        return
    write_whole(output, text.encode())
    given = "" if baseline is None or is_beside(baseline) else f" --baseline {audit}"
    typer.echo(f"written to {output}; hold a model against it with `tailwise check AUDIT --expect {output}{given}`")


def _check_targets(files: dict[str, str | None]) -> None:
    suffixes = {"junit": (".xml",), "sarif": (".sarif", ".json"), "badge": (".svg",)}
    for kind, path in files.items():
        if path is not None:
            check_text_target(path, suffixes.get(kind, (".md",)))


def _writers() -> dict[str, Callable[[CheckResult, Audit], str]]:
    from tailwise import __version__
    from tailwise.judging.gates.expectation_text import to_badge, to_markdown, to_model_card
    from tailwise.judging.gates.junit import to_junit
    from tailwise.judging.gates.sarif import to_sarif

    return {
        "junit": lambda result, _: to_junit(result),
        "sarif": lambda result, _: to_sarif(result, version=__version__),
        "markdown": lambda result, _: to_markdown(result),
        "model_card": to_model_card,
        "badge": lambda result, _: to_badge(result),
    }


def _say(result: CheckResult, as_json: bool) -> None:
    if as_json:
        sys.stdout.write(json.dumps(result.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        return
    from tailwise.judging.gates.expectation_text import to_text

    typer.echo(to_text(result))
