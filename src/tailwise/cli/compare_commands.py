"""`tailwise compare A B`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.audit_inputs import check_text_target, read_all, tell_where
from tailwise.cli.shared_options import Device, Json, Rows, Workers, comma_list
from tailwise.cli.store_options import Revisions, Run, Store, only_run, open_store
from tailwise.core.atomic import write_whole
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.audits.audit import Audit
    from tailwise.judging.compare.comparison import Comparison

_OUT = "Output"


def compare(
    models: Annotated[
        list[str], typer.Argument(help="Audits or models; the first is the base unless --base is given.")
    ],
    base: Annotated[
        str | None, typer.Option(metavar="AUDIT", help="What the others are held against.", rich_help_panel=HOW)
    ] = None,
    weights: Annotated[
        bool,
        typer.Option("--weights", help="Also read the checkpoints and measure W − W₀.", rich_help_panel=HOW),
    ] = False,
    directions: Annotated[
        int, typer.Option(min=1, help="Leading singular directions compared by --weights.", rich_help_panel=HOW)
    ] = 16,
    fdr: Fdr = 0.05,
    metrics: Metrics = None,
    randomize: Randomize = False,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="x.json, x.csv or x.md; x.audit for W − W₀. May be repeated.",
            rich_help_panel=_OUT,
        ),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:
    """Say what changed between models: per layer with significance, per role, per model, and in structure.

    A model that is no audit is audited first, with the recipe of the first audit given.
    """
    from tailwise.judging.compare.compare_audits import compare as compare_audits

    outputs = list(output or ())
    first, others = _sides(models, base)
    _check_outputs(outputs, weights, len(others))
    audits = read_all([first, *others], randomize=randomize, device=device, workers=workers)
    for given, audit in zip([first, *others], audits, strict=True) if weights else ():
        tell_where(given, audit)
    comparisons: list[Comparison] = []
    for after in audits[1:]:
        one = compare_audits(audits[0], after, level=fdr, metrics=comma_list(metrics) or None)
        if weights:
            one = _with_weights(one, audits[0], after, (directions, device, workers), outputs)
        comparisons.append(one)
    put_out(comparisons, outputs, as_json=as_json, rows=rows)


def _sides(models: list[str], base: str | None) -> tuple[str, list[str]]:
    first = models[0] if base is None else base
    others = models[1:] if base is None else [model for model in models if model != base]
    if not others:
        raise UsageError("there is nothing to compare with", fix="give two audits: tailwise compare BASE OTHER")
    return first, others


def _check_outputs(outputs: list[str], weights: bool, count: int) -> None:
    for path in outputs:
        check_text_target(path, (*TEXTS, ".audit"))
        if path.endswith(".audit") and not weights:
            raise UsageError("an audit of W − W₀ takes the weights", where=path, fix="add --weights")
        if path.endswith(".audit") and count > 1:
            raise UsageError("several comparisons do not go into one audit", where=path, fix="compare two models")


def _with_weights(
    comparison: Comparison, before: Audit, after: Audit, how: tuple[int, str, int | None], outputs: list[str]
) -> Comparison:
    from tailwise.judging.compare.difference import DifferenceOptions, difference

    result = difference(before, after, comparison=comparison, options=DifferenceOptions(*how))
    for path in outputs:
        if path.endswith(".audit"):
            result.audit.save(path)
    return result.comparison


HOW = "How to compare"
#: Suffixes of the files that comparisons are written to.
TEXTS = (".json", ".csv", ".md")

Fdr = Annotated[float, typer.Option(help="False discovery rate of what is called significant.", rich_help_panel=HOW)]
Metrics = Annotated[str | None, typer.Option(metavar="A,B", help="Only these metrics.", rich_help_panel=HOW)]
Randomize = Annotated[
    bool,
    typer.Option("--randomize", help="Of models that are audited here: also count traps.", rich_help_panel=HOW),
]


def put_out(comparisons: Sequence[Comparison], outputs: Sequence[str], *, as_json: bool, rows: int) -> None:
    """Print comparisons, as tables or as JSON, and write them to files; what has no suffix of `TEXTS` is there."""
    from tailwise.report import comparison_page as report
    from tailwise.report.terminal import console

    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(_json(comparisons) + "\n")
    else:
        for one in comparisons:
            screen.print(report.terminal(one, rows), "", sep="\n")
    texts = {".json": _json, ".csv": report.to_csv, ".md": report.to_markdown}
    for path in outputs:
        if Path(path).suffix in texts:
            write_whole(path, texts[Path(path).suffix](comparisons).encode())
        screen.print(f"written to {path}", soft_wrap=True, markup=False)


def _json(comparisons: Sequence[Comparison]) -> str:
    documents = [one.to_json() for one in comparisons]
    return json.dumps(documents[0] if len(documents) == 1 else documents, indent=1, ensure_ascii=False, allow_nan=False)


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
    from tailwise.history.sweep.results import is_results, read_numbers
    from tailwise.judging.compare.model_scores import read_scores
    from tailwise.judging.compare.ranking import numbers_of, rank_numbers, with_stability
    from tailwise.report import comparison_page as report
    from tailwise.report.terminal import console

    for path in output or ():
        check_text_target(path, (".json", ".csv", ".md"))
    known = None if scores is None else read_scores(scores)
    swept = {model: read_numbers(model) for model in models if is_results(model)}
    single = [model for model in models if model not in swept]
    audits = read_all(single, randomize=randomize, device=device, workers=workers)
    numbers = [one for several in swept.values() for one in several]
    numbers += [numbers_of(audit, min_evals, source) for audit, source in zip(audits, single, strict=True)]
    ranking = with_stability(rank_numbers(numbers, by=by, scores=known), numbers, audits, min_evals)
    screen = console(stderr=as_json)
    document = json.dumps(ranking.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    if as_json:
        sys.stdout.write(document + "\n")
    else:
        screen.print(report.ranking_terminal(ranking))
    texts = {".json": document, ".csv": report.ranking_csv(ranking), ".md": report.ranking_markdown(ranking)}
    for path in output or ():
        write_whole(path, texts[Path(path).suffix].encode())
        screen.print(f"written to {path}", soft_wrap=True, markup=False)


def diff(
    before: Annotated[str, typer.Argument(metavar="STEP", help="A step, or the word first.")],
    after: Annotated[str, typer.Argument(metavar="STEP", help="A later step, or the word last.")],
    store: Store = None,
    run: Run = None,
    checkpoints: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="In place of a store: a folder or URL with checkpoints, or org/name.",
                     rich_help_panel="Where"),
    ] = None,
    revisions: Revisions = None,
    fdr: Fdr = 0.05,
    metrics: Metrics = None,
    randomize: Randomize = False,
    device: Device = "cpu",
    workers: Workers = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json, x.csv or x.md; may be repeated.",
                     rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
    rows: Rows = 100,
) -> None:  # fmt: skip
    """Say what changed between two steps of a run: per layer, per role and for the model, as `tailwise compare` does.

    Of a store, audits are read from their files where those are still there; without them there are no spectra, and
    nothing about alpha is called significant. Of a folder, the two checkpoints are audited.
    """
    from tailwise.judging.compare.compare_audits import compare

    for path in output or ():
        check_text_target(path, TEXTS)
    if checkpoints is not None:
        settings = {"device": device, "workers": workers, "randomize": int(randomize)}
        sides = _of_folder(checkpoints, comma_list(revisions), (before, after), settings)
    elif randomize or device != "cpu" or workers is not None:
        what = "what the store has is not audited again: --randomize, --device and --workers are for checkpoints"
        raise UsageError(what, fix="leave them out, or give --checkpoints DIR")
    else:
        sides = _of_store(store, run, (before, after))
    (old, new), notes = sides
    comparison = compare(old, new, level=fdr, metrics=comma_list(metrics) or None)
    put_out([replace(comparison, notes=(*comparison.notes, *notes))], output or (), as_json=as_json, rows=rows)


Sides = tuple[list["Audit"], list[str]]


def _of_folder(where: str, revisions: tuple[str, ...], asked: tuple[str, str], settings: Mapping[str, object]) -> Sides:
    from tailwise.audits.run import audit
    from tailwise.cli.progress_bar import progress_bar
    from tailwise.history.runs.found import find, nothing_found

    by_step = {one.step: one for one in find(where, revisions)}
    if not by_step:
        raise nothing_found(where)
    chosen = [by_step[_step(text, sorted(by_step), where)] for text in asked]
    with progress_bar() as show:
        return [audit(one.uri, progress=show, **settings) for one in chosen], []  # type: ignore[arg-type]


def _of_store(store: str | None, run: str | None, asked: tuple[str, str]) -> Sides:
    from tailwise.history.as_audit import audit_at

    with open_store(store) as history:
        name = only_run(history, run)
        known = sorted({item.step for item in history.audits(name)} | set(history.scalars(name)["step"].to_pylist()))
        pairs = [audit_at(history, name, _step(text, known, f"the run {name!r}")) for text in asked]
    return [audit for audit, _ in pairs], list(dict.fromkeys(lacks for _, lacks in pairs if lacks))


def _step(text: str, known: list[int], where: str) -> int:
    words = {"first": 0, "last": -1}
    if text in words and known:
        return known[words[text]]
    digits = text.removeprefix("step").strip("-_ ")
    if not digits.isdecimal():
        raise UsageError(f"{text!r} is no step", fix="give a number, or first or last")
    if int(digits) not in known:
        near = sorted(sorted(known, key=lambda step: abs(step - int(digits)))[:6])
        raise UsageError(f"has no step {digits}", where=where, fix=f"steps nearby: {', '.join(map(str, near))}")
    return int(digits)
