"""`tailwise evaluate MODEL`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.arguments import Begin, Bos, Json, comma_list
from tailwise.cli.progress import counted, last_part
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tailwise.models.evaluation.scores import Interval, ScoreChange, ScoreComparison, Scores

_WHAT, _HOW, _RUN, _OUT = "What to measure", "How to measure", "How to run", "Output"
_SUFFIXES = (".json", ".md", ".html")


class Compute(StrEnum):
    """Precision of the model's own arithmetic; losses are always in float32."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            help="Language model, image classifier or adapter: a folder or Hugging Face id; or scores saved as x.json."
        ),
    ],
    against: Annotated[
        str | None,
        typer.Option(metavar="BASE", help="A model, or saved scores, to hold it against.", rich_help_panel=_WHAT),
    ] = None,
    text: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT",
            help="For perplexity: a text file, a folder of them, token ids (.npy, .pt, .safetensors, .json), "
            "wikitext2, or a data set as org/name:split:column. May be repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    images: Annotated[
        list[str] | None,
        typer.Option(
            metavar="IMAGES",
            help="For the accuracy of an image classifier: a folder with one for each class, a .npz (images, labels), "
            "or a data set as org/name:split. May be repeated.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    base: Annotated[
        str | None,
        typer.Option(metavar="MODEL", help="Of an adapter: the model it adapts.", rich_help_panel=_WHAT),
    ] = None,
    tasks: Annotated[
        str | None,
        typer.Option(
            metavar="A,B",
            help="Tasks of lm-eval, by name; alphapruning: the seven of that paper.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    include_path: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Folder with task files of your own.", rich_help_panel=_WHAT)
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Also measure tokens per second.", rich_help_panel=_WHAT)
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=2, help="Tokens in a window; 512, or less where the text is short, by default.", rich_help_panel=_HOW
        ),
    ] = None,
    max_windows: Annotated[
        int | None, typer.Option(min=1, help="That many windows (or images) at random, not all.", rich_help_panel=_HOW)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Documents of each task, not all.", rich_help_panel=_HOW)
    ] = None,
    separator: Annotated[
        str, typer.Option(help="A line of a text file that ends a document; '' for none.", rich_help_panel=_HOW)
    ] = "<|endoftext|>",
    bos: Bos = Begin.auto,
    tokenizer: Annotated[
        str | None, typer.Option(metavar="DIR", help="Tokenizer, if not the model's own.", rich_help_panel=_HOW)
    ] = None,
    dtype: Annotated[
        Compute, typer.Option(help="auto: as stored, but float32 on a CPU.", rich_help_panel=_HOW)
    ] = Compute.auto,
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=_HOW)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)] = "cpu",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows at once; as memory allows by default.", rich_help_panel=_RUN)
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "-o", "--output", metavar="FILE", help="x.json, x.md or x.html; may be repeated.", rich_help_panel=_OUT
        ),
    ] = None,
    card: Annotated[
        bool,
        typer.Option("--card", help="Put the numbers into the model card (README.md) of MODEL.", rich_help_panel=_OUT),
    ] = False,
    as_json: Json = False,
) -> None:
    """Measure a language model (perplexity, tasks, size, speed) or an image classifier (accuracy), with intervals.

    With --against, both models see the same windows and documents, and the differences are tested pair by pair.
    """
    from tailwise.models.evaluation.evaluate import EvaluateOptions

    for path in output or ():
        _check_output(path)
    if card:
        from tailwise.report.evaluations.model_card import check_card

        check_card(model)
    if images and (text or tasks or speed):
        raise UsageError("images and text are scored apart", fix="leave --text, --tasks and --speed out")
    options = EvaluateOptions(
        window=window,
        max_windows=max_windows,
        separator=separator,
        bos=bos.value,
        tasks=comma_list(tasks),
        include_path=include_path,
        limit=limit,
        seed=seed,
        dtype=dtype.value,
        device=device,
        batch=batch,
        speed=speed,
        base=base,
    )
    if images:
        found = _of_images(model, against, list(images), options)
    else:
        found = _found(model, against, list(text) if text else None, tokenizer, options)
    _deliver(found, list(output or ()), as_json, model if card else None)


def _check_output(path: str) -> None:
    from tailwise.report.html import check_page
    from tailwise.report.output_files import check_place

    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        known = ", ".join(_SUFFIXES)
        raise UsageError(f"the suffix {Path(path).suffix!r} is not known", where=path, fix=f"use one of {known}")
    if suffix == ".html":
        check_page(path)
    check_place(path)


def _write(found: Scores | ScoreComparison, path: str) -> None:
    from tailwise.core.atomic import write_whole

    suffix = Path(path).suffix.lower()
    if suffix == ".md":
        from tailwise.report.evaluations.evaluation_tables import markdown

        write_whole(path, markdown(found).encode())
    elif suffix == ".html":
        from tailwise.report.evaluations.evaluation_page import write_report

        write_report({Path(path).stem: found}, path)
    else:
        found.save(path)


def _found(
    model: str, against: str | None, text: list[str] | None, tokenizer: str | None, options: Any
) -> Scores | ScoreComparison:
    from tailwise.models.evaluation.evaluate import evaluate as evaluate_models
    from tailwise.models.evaluation.score_pairs import compare_scores
    from tailwise.models.evaluation.scores import Scores

    base = Scores.load(against) if against is not None and _is_saved(against) else against
    if _is_saved(model):
        if not isinstance(base, Scores):
            raise UsageError("saved scores are compared with saved scores", where=model, fix="give --against base.json")
        return compare_scores(Scores.load(model), base, seed=options.seed)
    with counted(last_part) as show:
        found = evaluate_models(model, text=text, against=base, tokenizer=tokenizer, options=options, progress=show)
    return _sized(found)


def _of_images(model: str, against: str | None, images: list[str], options: Any) -> Scores | ScoreComparison:
    from tailwise.models.evaluation.classify import evaluate_images
    from tailwise.models.evaluation.scores import Scores

    base = Scores.load(against) if against is not None and _is_saved(against) else against
    return evaluate_images(model, images, against=base, options=options)


def _sized(found: Scores | ScoreComparison) -> Scores | ScoreComparison:
    """With the bytes that a plan's formats take, of models that are stored de-quantized."""
    from tailwise.models.evaluation.scores import Scores

    if not isinstance(found, Scores):
        return replace(found, model=_with_plan(found.model), base=_with_plan(found.base))
    return _with_plan(found)


def _with_plan(scores: Scores) -> Scores:
    from tailwise.compression.applying.planned_size import planned_nbytes
    from tailwise.core.errors import TailwiseError

    if scores.facts is None or not Path(scores.model).is_dir():
        return scores
    try:
        return replace(scores, facts=replace(scores.facts, planned_nbytes=planned_nbytes(scores.model)))
    except TailwiseError as error:
        return replace(scores, notes=(*scores.notes, f"{scores.model}: its plan was not read ({error.what})"))


def _is_saved(name: str) -> bool:
    return Path(name).suffix == ".json"


def _deliver(found: Scores | ScoreComparison, outputs: list[str], as_json: bool, card: str | None = None) -> None:
    from tailwise.models.evaluation.scores import ScoreComparison, as_text
    from tailwise.report.terminal import console

    for path in outputs:  # first: a reader that closes the pipe must not cost the scores
        _write(found, path)
    if card is not None:
        from tailwise.report.evaluations.model_card import write_card

        outputs = [*outputs, str(write_card(found, card))]
    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(as_text(found.to_json()))
    else:
        both = [found.base, found.model] if isinstance(found, ScoreComparison) else [found]
        screen.print(_models(both))
        of_both = (_changes(found), _divergence(found)) if isinstance(found, ScoreComparison) else ()
        for part in (_tasks(both), *of_both):
            if part is not None:
                screen.print("", part, sep="\n")
        for note in _notes(found, both):
            screen.print(note, style="yellow", markup=False, soft_wrap=True)
    for path in outputs:
        screen.print(f"written to {path}", soft_wrap=True, markup=False)


def _grid(titles: Sequence[str]) -> Table:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for index, title in enumerate(titles):
        table.add_column(title, justify="right" if index else "left", overflow="fold")
    return table


def _models(both: Sequence[Scores]) -> RenderableType:
    from rich.text import Text

    titles = ["model"]
    if any(scores.losses for scores in both):
        titles += ["perplexity", "95 %", "windows"]
    if any(scores.facts for scores in both):
        titles += ["parameters", "zeros", "in blocks", "stored"]
    if any(scores.speed for scores in both):
        titles += ["prefill tokens/s", "decode tokens/s", "threads"]
    table = _grid(titles)
    for scores in both:
        cells = _cells(scores)
        table.add_row(*(Text(cells.get(title, "–")) for title in titles))
    return table


def _cells(scores: Scores) -> dict[str, str]:
    from rich.filesize import decimal

    found = {"model": scores.model}
    if scores.losses:
        found |= {"perplexity": _number(scores.perplexity), "95 %": _range(scores.interval)}
        found["windows"] = f"{len(scores.losses)} × {scores.tokens_per_window + 1}"
    if (facts := scores.facts) is not None:
        found |= {"parameters": f"{facts.parameters:,}", "zeros": f"{facts.sparsity:.1%}"}
        found |= {"in blocks": f"{facts.block_sparsity:.1%}", "stored": decimal(facts.nbytes)}
    if (speed := scores.speed) is not None:
        found |= {"prefill tokens/s": f"{speed.prefill:,.0f}", "threads": str(speed.threads)}
        found["decode tokens/s"] = "–" if speed.decode is None else f"{speed.decode:,.1f}"
    return found


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}" if value < 1e4 else f"{value:.3e}"


def _range(interval: Interval | None, form: str = ".4g") -> str:
    return "–" if interval is None else f"{interval[0]:{form}} to {interval[1]:{form}}"


def _tasks(both: Sequence[Scores]) -> RenderableType | None:
    if not any(scores.tasks for scores in both):
        return None
    table = _grid(["task", "metric", *(["model"] if len(both) > 1 else []), "value", "± standard error", "documents"])
    for scores in both:
        for one in scores.tasks:
            error = "–" if one.stderr is None else f"{one.stderr:.4f}"
            who = [scores.model] if len(both) > 1 else []
            table.add_row(one.task, one.metric, *who, f"{one.value:.4f}", error, str(one.n))
    return table


_COLORS = {"better": "green", "worse": "red"}


def _changes(found: ScoreComparison) -> RenderableType | None:
    from rich.text import Text

    changes: list[ScoreChange] = [*([found.perplexity] if found.perplexity else []), *found.tasks]
    if not changes:
        return None
    table = _grid(["against the base", "change", "95 %", "p", "pairs", "runs", "verdict"])
    for one in changes:
        change = "–" if one.change is None else f"{one.change:+.4f}"
        if one is found.perplexity and found.ratio is not None:
            change += f" (perplexity × {found.ratio:.4f})"
        p = "–" if one.p is None else f"{one.p:.2g}"
        verdict = Text(one.verdict, style=_COLORS.get(one.verdict, ""))
        runs = "–" if one.runs is None else str(one.runs)
        table.add_row(one.name, change, _range(one.interval, "+.4f"), p, str(one.n), runs, verdict)
    return table


def _divergence(found: ScoreComparison) -> RenderableType | None:
    """What llama.cpp's users know as the KL divergence statistics, each with its interval."""
    from tailwise.report.evaluations.evaluation_tables import divergence_grid

    return None if found.divergence is None else divergence_grid(found.divergence, found.perplexity)


def _notes(found: Scores | ScoreComparison, both: Sequence[Scores]) -> list[str]:
    own = () if found in both else found.notes
    return list(dict.fromkeys([*(note for scores in both for note in scores.notes), *own]))
