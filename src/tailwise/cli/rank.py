"""`tailwise rank A B C …`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from tailwise.core.atomic import write_whole
from tailwise.cli.compare_commands import check_text_target, read_all
from tailwise.cli.compared import Randomize
from tailwise.cli.arguments import Device, Json, Workers


def rank(
    models: Annotated[list[str], typer.Argument(help="Audits or models of one family; or the folder of a sweep.")],
    by: Annotated[
        str, typer.Option(help="alpha_weighted, alpha, alpha_2_6, share_2_4, log_norm, effective_rank, …",
                          rich_help_panel="How to compare"),
    ] = "alpha_weighted",
    scores: Annotated[
        str | None,
        typer.Option(metavar="FILE.csv", help="Columns model,score: how far each number follows your scores.",
                     rich_help_panel="How to compare"),
    ] = None,
    min_evals: Annotated[
        int | None,
        typer.Option(min=1, metavar="N", help="Trust fits of matrices with N eigenvalues or more, not with 50.",
                     rich_help_panel="How to compare"),
    ] = None,
    randomize: Randomize = False,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json, x.csv or x.md; may be repeated.",
                     rich_help_panel="Output"),
    ] = None,
    as_json: Json = False,
) -> None:  # fmt: skip
    """Order the models of one family by one number, and hold that number against your scores."""
    from tailwise.judging.compare.ranking import numbers_of, rank_numbers, with_stability
    from tailwise.judging.compare.model_scores import read_scores
    from tailwise.report import comparison_page as report
    from tailwise.report.terminal import console
    from tailwise.history.sweep.results import is_results, read_numbers

    for path in output or ():
        check_text_target(path, (".json", ".csv", ".md"))
    known = None if scores is None else read_scores(scores)
    swept = {model: read_numbers(model) for model in models if is_results(model)}
    single = [model for model in models if model not in swept]
    audits = read_all(single, randomize=randomize, device=device, workers=workers)
    numbers = [one for several in swept.values() for one in several]
    numbers += [numbers_of(audit, min_evals, source) for audit, source in zip(audits, single, strict=True)]
    found = with_stability(rank_numbers(numbers, by=by, scores=known), numbers, audits, min_evals)
    screen = console(stderr=as_json)
    document = json.dumps(found.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    if as_json:
        sys.stdout.write(document + "\n")
    else:
        screen.print(report.ranking_terminal(found))
    texts = {".json": document, ".csv": report.ranking_csv(found), ".md": report.ranking_markdown(found)}
    for path in output or ():
        write_whole(path, texts[Path(path).suffix].encode())
        screen.print(f"written to {path}", soft_wrap=True, markup=False)
