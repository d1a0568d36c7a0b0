"""`tailwise report AUDIT… -o report.html`."""

from __future__ import annotations

from typing import Annotated

import typer


def report(
    audits: Annotated[list[str], typer.Argument(metavar="AUDIT...", help="One audit, or several side by side.")],
    output: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="Where to write it.")] = "report.html",
    base: Annotated[str | None, typer.Option(metavar="AUDIT", help="Also compare each with this audit.")] = None,
) -> None:
    """Write findings, charts and every layer into one HTML file that needs no network."""
    from tailwise.audits.audit import Audit
    from tailwise.report.charts.chart import require_altair

    require_altair()
    from tailwise.report import html

    html.check_page(output)
    loaded = [Audit.load(path) for path in audits]
    written = html.write_report(loaded, output, base=Audit.load(base) if base else None)
    size = "" if isinstance(written, str) else f" ({written.stat().st_size / 1e6:.1f} MB)"
    typer.echo(f"written to {written}{size}")
