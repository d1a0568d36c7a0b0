"""`tailwise evaluate MODEL`."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.progress_bar import counted, last_part
from tailwise.cli.shared_options import Begin, Bos, Compute, Json, comma_list
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from tailwise.models.evaluation.scores import ScoreComparison, Scores

_WHAT, _HOW, _RUN, _OUT = "What to measure", "How to measure", "How to run", "Output"
_SUFFIXES = (".json", ".md", ".html")


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
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder with task files of your own; Python that they name is run.",
            rich_help_panel=_WHAT,
        ),
    ] = None,
    speed: Annotated[
        bool, typer.Option("--speed", help="Also measure tokens per second.", rich_help_panel=_WHAT)
    ] = False,
    window: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Tokens that the model sees at once; 512, or less where the text is short, by default.",
            rich_help_panel=_HOW,
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
    ] = "auto",
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
        dtype=dtype,
        device=device,
        batch=batch,
        speed=speed,
        base=base,
    )
    if images:
        scores = _of_images(model, against, list(images), options)
    else:
        scores = _found(model, against, list(text) if text else None, tokenizer, options)
    _deliver(scores, list(output or ()), as_json, model if card else None)


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


def _write(scores: Scores | ScoreComparison, path: str) -> None:
    from tailwise.core.atomic import write_whole

    suffix = Path(path).suffix.lower()
    if suffix == ".md":
        from tailwise.report.evaluations.evaluation_tables import markdown

        write_whole(path, markdown(scores).encode())
    elif suffix == ".html":
        from tailwise.report.evaluations.evaluation_page import write_report

        write_report({Path(path).stem: scores}, path)
    else:
        scores.save(path)


def _found(
    model: str, against: str | None, text: list[str] | None, tokenizer: str | None, options: Any
) -> Scores | ScoreComparison:
    from tailwise.models.evaluation.adapters import base_of, is_adapter
    from tailwise.models.evaluation.evaluate import evaluate as evaluate_models
    from tailwise.models.evaluation.score_pairs import compare_scores
    from tailwise.models.evaluation.scores import Scores

    base = Scores.load(against) if against is not None and _is_saved(against) else against
    if _is_saved(model):
        if not isinstance(base, Scores):
            raise UsageError("saved scores are compared with saved scores", where=model, fix="give --against base.json")
        return compare_scores(Scores.load(model), base, seed=options.seed)
    loading = f"loading {' and '.join(last_part(one) for one in (model, base) if isinstance(one, str))}"
    with counted(last_part, loading) as show:
        scores = evaluate_models(model, text=text, against=base, tokenizer=tokenizer, options=options, progress=show)
    if isinstance(scores, Scores) and is_adapter(model):
        hint = f"whether the fine-tune cost something: --against {base_of(model, options.base)}"
        scores = replace(scores, notes=(*scores.notes, hint))
    return _sized(scores)


def _of_images(model: str, against: str | None, images: list[str], options: Any) -> Scores | ScoreComparison:
    from tailwise.models.evaluation.classify import evaluate_images
    from tailwise.models.evaluation.scores import Scores

    base = Scores.load(against) if against is not None and _is_saved(against) else against
    return evaluate_images(model, images, against=base, options=options)


def _sized(scores: Scores | ScoreComparison) -> Scores | ScoreComparison:
    """With the bytes that a plan's formats take, of models that are stored dequantized."""
    from tailwise.models.evaluation.scores import Scores

    if not isinstance(scores, Scores):
        return replace(scores, model=_with_plan(scores.model), base=_with_plan(scores.base))
    return _with_plan(scores)


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


def _deliver(scores: Scores | ScoreComparison, outputs: list[str], as_json: bool, card: str | None = None) -> None:
    from tailwise.models.evaluation.scores import ScoreComparison, as_text
    from tailwise.report import scores_view as view
    from tailwise.report.terminal import console

    for path in outputs:  # first: a reader that closes the pipe must not cost the scores
        _write(scores, path)
    if card is not None:
        from tailwise.report.evaluations.model_card import write_card

        outputs = [*outputs, str(write_card(scores, card))]
    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(as_text(scores.to_json()))
    else:
        both = [scores.base, scores.model] if isinstance(scores, ScoreComparison) else [scores]
        if isinstance(scores, ScoreComparison) and scores.conclusion:
            screen.print(scores.conclusion, style="bold", markup=False, soft_wrap=True)
            screen.print("", markup=False)
        screen.print(view.models_in(both))
        of_both = (view.changes_in(scores), view.divergence_in(scores)) if isinstance(scores, ScoreComparison) else ()
        for part in (view.tasks_in(both), *of_both):
            if part is not None:
                screen.print("", part, sep="\n")
        for line in view.below(scores) if isinstance(scores, ScoreComparison) else ():
            screen.print(line, style="dim", markup=False, soft_wrap=True)
        for note in view.notes_in(scores, both):
            screen.print(note, style="yellow", markup=False, soft_wrap=True)
    for path in outputs:
        screen.print(f"written to {path}", soft_wrap=True, markup=False)
