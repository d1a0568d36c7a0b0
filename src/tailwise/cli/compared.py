"""What `compare` and `diff` share: options, and where comparisons go."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.core.atomic import write_whole

if TYPE_CHECKING:
    from tailwise.judging.compare.comparison import Comparison

HOW = "How to compare"
#: Suffixes of the files that comparisons are written to.
TEXTS = (".json", ".csv", ".md")

Fdr = Annotated[float, typer.Option(help="False discovery rate of what is called significant.", rich_help_panel=HOW)]
Metrics = Annotated[str | None, typer.Option(metavar="A,B", help="Only these metrics.", rich_help_panel=HOW)]
Randomize = Annotated[
    bool,
    typer.Option("--randomize", help="Of models that are audited here: also count traps.", rich_help_panel=HOW),
]


def put_out(found: Sequence[Comparison], outputs: Sequence[str], *, as_json: bool, rows: int) -> None:
    """Print comparisons, as tables or as JSON, and write them to files; what has no suffix of `TEXTS` is there."""
    from tailwise.report import comparison_page as report
    from tailwise.report.terminal import console

    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(_json(found) + "\n")
    else:
        for one in found:
            screen.print(report.terminal(one, rows), "", sep="\n")
    texts = {".json": _json, ".csv": report.to_csv, ".md": report.to_markdown}
    for path in outputs:
        if Path(path).suffix in texts:
            write_whole(path, texts[Path(path).suffix](found).encode())
        screen.print(f"written to {path}", soft_wrap=True, markup=False)


def _json(found: Sequence[Comparison]) -> str:
    documents = [one.to_json() for one in found]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1, ensure_ascii=False, allow_nan=False)
