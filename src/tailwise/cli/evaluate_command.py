"""`tailwise evaluate MODEL`."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tailwise.cli.arguments import Begin, Bos, Compute, Json, comma_list
from tailwise.cli.progress import shown
from tailwise.core.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

    from tailwise.models.evaluation.scores import Interval, ScoreChange, ScoreComparison, Scores

_WHAT, _HOW, _RUN, _OUT = "What to measure", "How to measure", "How to run", "Output"


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
    ] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="Of everything random.", rich_help_panel=_HOW)] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)] = "cpu",
    batch: Annotated[
        int | None, typer.Option(min=1, help="Windows at once; as memory allows by default.", rich_help_panel=_RUN)
    ] = None,
    output: Annotated[
        list[str] | None,
        typer.Option("-o", "--output", metavar="FILE", help="x.json; may be repeated.", rich_help_panel=_OUT),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure a language model (perplexity, tasks, size, speed) or an image classifier (accuracy), with intervals.

    With --against, both models see the same windows and documents, and the differences are tested pair by pair.
    """
    from tailwise.models.evaluation.evaluate import EvaluateOptions

    for path in output or ():
        _check_output(path)
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
        _deliver(_of_images(model, against, list(images), options), list(output or ()), as_json)
        return
    scores = _found(model, against, list(text) if text else None, tokenizer, options)
    _deliver(scores, list(output or ()), as_json)


def _check_output(path: str) -> None:
    from tailwise.report.output_files import check_target

    if Path(path).suffix != ".json":
        raise UsageError(f"the suffix {Path(path).suffix!r} is not known", where=path, fix="use .json")
    check_target(path)


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
    with _bar() as show:
        return evaluate_models(model, text=text, against=base, tokenizer=tokenizer, options=options, progress=show)


def _of_images(model: str, against: str | None, images: list[str], options: Any) -> Scores | ScoreComparison:
    from tailwise.models.evaluation.classify import evaluate_images
    from tailwise.models.evaluation.scores import Scores

    base = Scores.load(against) if against is not None and _is_saved(against) else against
    return evaluate_images(model, images, against=base, options=options)


def _is_saved(name: str) -> bool:
    return Path(name).suffix == ".json"


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr, one task for each model; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    lines: dict[str, Any] = {}
    with shown(Progress(*columns, console=console, transient=True, disable=not console.is_terminal)) as bar:

        def show(name: str, done: int, total: int) -> None:
            if name not in lines:
                lines[name] = bar.add_task(Path(name).name, total=total)
            bar.update(lines[name], completed=done)

        yield show


def _deliver(scores: Scores | ScoreComparison, outputs: list[str], as_json: bool) -> None:
    from tailwise.models.evaluation.scores import ScoreComparison, as_text
    from tailwise.report.terminal import console

    for path in outputs:  # first: a reader that closes the pipe must not cost the scores
        scores.save(path)
    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(as_text(scores.to_json()))
    else:
        both = [scores.base, scores.model] if isinstance(scores, ScoreComparison) else [scores]
        screen.print(_models(both))
        of_both = (_changes(scores), _divergence(scores)) if isinstance(scores, ScoreComparison) else ()
        for part in (_tasks(both), *of_both):
            if part is not None:
                screen.print("", part, sep="\n")
        for note in _notes(scores, both):
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

    cells = {"model": scores.model}
    if scores.losses:
        cells |= {"perplexity": _number(scores.perplexity), "95 %": _range(scores.interval)}
        cells["windows"] = f"{len(scores.losses)} × {scores.tokens_per_window + 1}"
    if (size := scores.facts) is not None:
        cells |= {"parameters": f"{size.parameters:,}", "zeros": f"{size.sparsity:.1%}"}
        cells |= {"in blocks": f"{size.block_sparsity:.1%}", "stored": decimal(size.nbytes)}
    if (speed := scores.speed) is not None:
        cells |= {"prefill tokens/s": f"{speed.prefill:,.0f}", "threads": str(speed.threads)}
        cells["decode tokens/s"] = "–" if speed.decode is None else f"{speed.decode:,.1f}"
    return cells


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


def _changes(comparison: ScoreComparison) -> RenderableType | None:
    from rich.text import Text

    changes: list[ScoreChange] = [*([comparison.perplexity] if comparison.perplexity else []), *comparison.tasks]
    if not changes:
        return None
    table = _grid(["against the base", "change", "95 %", "p", "pairs", "runs", "verdict"])
    for one in changes:
        change = "–" if one.change is None else f"{one.change:+.4f}"
        if one is comparison.perplexity and comparison.ratio is not None:
            change += f" (perplexity × {comparison.ratio:.4f})"
        p = "–" if one.p is None else f"{one.p:.2g}"
        verdict = Text(one.verdict, style=_COLORS.get(one.verdict, ""))
        runs = "–" if one.runs is None else str(one.runs)
        table.add_row(one.name, change, _range(one.interval, "+.4f"), p, str(one.n), runs, verdict)
    return table


def _divergence(comparison: ScoreComparison) -> RenderableType | None:
    """What llama.cpp's users know as the KL divergence statistics, each with its interval."""
    one = comparison.divergence
    if one is None:
        return None
    kl, change = one.kl_quantiles, one.change_quantiles
    rows = [
        ("mean KL divergence, nats", _plain(one.kl), _range(one.kl_interval, ".3g")),
        ("  median, 90 %", f"{_plain(kl['50'])} · {_plain(kl['90'])}", ""),
        ("  99 %, 99.9 %", f"{_plain(kl['99'])} · {_plain(kl['99.9'])}", ""),
        ("  largest", _plain(kl["100"]), ""),
        ("same top token", _percent(one.same_top), _percents(one.same_top_interval)),
        ("token probability, mean change", _percent(one.change, "+"), _percents(one.change_interval, "+")),
        ("  root mean square", _percent(one.rms_change), _percents(one.rms_change_interval)),
        ("  1 %, 99 %", f"{_percent(change['1'], '+')} · {_percent(change['99'], '+')}", ""),
        ("  5 %, 95 %", f"{_percent(change['5'], '+')} · {_percent(change['95'], '+')}", ""),
    ]
    table = _grid([f"over {one.tokens:,} tokens", "value", "95 %"])
    for row in rows:
        table.add_row(*row)
    return table


def _plain(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.3g}" if value >= 1e-12 else "0"


def _percent(value: float | None, sign: str = "") -> str:
    return "not finite" if value is None else f"{100 * value:{sign}.2f} %"


def _percents(interval: Interval | None, sign: str = "") -> str:
    return "–" if interval is None else f"{100 * interval[0]:{sign}.2f} to {100 * interval[1]:{sign}.2f} %"


def _notes(result: Scores | ScoreComparison, both: Sequence[Scores]) -> list[str]:
    own = () if result in both else result.notes
    return list(dict.fromkeys([*(note for scores in both for note in scores.notes), *own]))
