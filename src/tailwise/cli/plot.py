"""`tailwise plot AUDIT --chart NAME`."""

from __future__ import annotations

import json
from enum import StrEnum
from typing import Annotated

import typer

from tailwise.cli.arguments import Json
from tailwise.core.errors import UsageError


class Theme(StrEnum):
    """Of the paper."""

    light = "light"
    dark = "dark"


def plot(
    audits: Annotated[list[str] | None, typer.Argument(metavar="AUDIT", help="One audit, or several.")] = None,
    chart: Annotated[str | None, typer.Option(metavar="NAME", help="Which chart; see --list.")] = None,
    output: Annotated[
        str | None, typer.Option("-o", "--output", metavar="FILE", help="x.png, x.svg, x.pdf, x.html or x.json.")
    ] = None,
    base: Annotated[str | None, typer.Option(metavar="AUDIT", help="For charts against a base.")] = None,
    layer: Annotated[str | None, typer.Option(metavar="NAME", help="For charts of one layer.")] = None,
    metric: Annotated[str | None, typer.Option(metavar="NAME", help="For the heat map.")] = None,
    theme: Annotated[Theme, typer.Option(help="Light or dark paper.")] = Theme.light,
    listed: Annotated[bool, typer.Option("--list", help="List the charts.")] = False,
    as_json: Json = False,
) -> None:
    """Draw one chart of an audit as a picture, a page, or a Vega-Lite spec."""
    if listed:
        _list(as_json)
        return
    if not audits or chart is None or (output is None and not as_json):
        raise UsageError("a plot needs an audit, --chart and -o", fix="tailwise plot AUDIT --chart alpha_hist -o x.png")
    from tailwise.audits.audit import Audit
    from tailwise.report import render

    if output is not None:
        render.check_figure(output)
    loaded = [Audit.load(path) for path in audits]
    against = Audit.load(base) if base else None
    figure = render.plot(chart, loaded, base=against, layer=layer, metric=metric, theme=theme.value)
    if as_json:
        typer.echo(json.dumps(figure.to_dict(validate=False), ensure_ascii=False))
    if output is not None:
        typer.echo(f"written to {render.write_figure(figure, output)}", err=as_json)


def _list(as_json: bool) -> None:
    from tailwise.report.charts.chart import CHARTS

    found = [{"name": item.name, "scope": item.scope, "summary": item.summary, "needs": list(item.needs)}
             for _, item in CHARTS.items()]  # fmt: skip
    if as_json:
        typer.echo(json.dumps(found, ensure_ascii=False, indent=1))
        return
    width = max(len(str(line["name"])) for line in found)
    for line in found:
        typer.echo(f"{line['name']:<{width}}  {line['scope']:<8}  {line['summary']}")
