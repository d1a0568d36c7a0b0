"""`tailwise metrics`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from tailwise.cli.arguments import Json


def metrics(
    names: Annotated[list[str] | None, typer.Argument(help="Only these.")] = None, as_json: Json = False
) -> None:
    """List every metric with its formula and source."""
    from tailwise.spectrum.metrics.metric import METRICS
    from tailwise.report import terminal

    chosen = [METRICS[name].name for name in names] if names else list(METRICS)
    if as_json:
        keys = ("name", "family", "summary", "formula", "unit", "source")
        described = [asdict(METRICS[name]) for name in chosen]
        typer.echo(json.dumps([{key: item[key] for key in keys} for item in described], ensure_ascii=False, indent=1))
    else:
        terminal.console().print(terminal.metrics_table(chosen))
