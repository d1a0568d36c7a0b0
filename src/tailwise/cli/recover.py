"""`tailwise recover PRUNED --text TEXT -o OUT`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tailwise.cli.arguments import Json
from tailwise.cli.progress import shown

if TYPE_CHECKING:
    from rich.table import Table

    from tailwise.compression.recovery.recovered import Recovered

_HOW, _RUN, _OUT = "Training", "How to run", "Output"


def recover(
    model: Annotated[str, typer.Argument(help="The pruned model: folder or Hugging Face id.")],
    text: Annotated[
        list[str],
        typer.Option(
            metavar="TEXT",
            help="What it is trained on: a text file, a folder of them, token ids (.npy, .pt, .safetensors, .json), "
            "wikitext2, or a data set as org/name:split:column; of an image classifier, images with their classes. A "
            "part is kept out to measure by. May be repeated.",
            rich_help_panel=_HOW,
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="DIR", help="Folder of the new model.", rich_help_panel=_OUT)
    ],
    method: Annotated[
        str,
        typer.Option(help="masked: all weights but the zeros. lora: an adapter of peft.", rich_help_panel=_HOW),
    ] = "masked",
    steps: Annotated[int, typer.Option(min=1, help="At most.", rich_help_panel=_HOW)] = 1000,
    lr: Annotated[
        float | None,
        typer.Option(help="Highest learning rate; by default from the model's width.", rich_help_panel=_HOW),
    ] = None,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapter.", rich_help_panel=_HOW)] = 8,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge", help="Train the adapter behind the mask and merge it: the zeros stay zero.", rich_help_panel=_HOW
        ),
    ] = False,
    window: Annotated[int, typer.Option(min=2, help="Tokens in a window.", rich_help_panel=_HOW)] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Windows a step.", rich_help_panel=_HOW)] = 4,
    seed: Annotated[
        int, typer.Option(min=0, help="Of the draws; the same steps then give the same.", rich_help_panel=_HOW)
    ] = 0,
    budget: Annotated[str, typer.Option(help="Longest training: 90s, 5m, 1h.", rich_help_panel=_RUN)] = "5m",
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:0.", rich_help_panel=_RUN)] = "cpu",
    force: Annotated[bool, typer.Option("--force", help="Replace the output.", rich_help_panel=_OUT)] = False,
    as_json: Json = False,
) -> None:
    """Train a pruned model for a while, its zeros kept at zero.

    Prints its perplexity before and after on text that the training did not see. The best state is kept, chosen on
    yet other text; where none is better than the pruned model, nothing is written.
    """
    from tailwise.compression.recovery.recover import RecoverOptions
    from tailwise.compression.recovery.recover import recover as recover_model
    from tailwise.compression.trying.planned import seconds_of

    options = RecoverOptions(
        method=method,
        steps=steps,
        lr=lr,
        rank=rank,
        merge=merge,
        window=window,
        batch=batch,
        seed=seed,
        seconds=seconds_of(budget),
        device=device,
        force=force,
    )
    with _bar() as say:
        found = recover_model(model, list(text), output, options=options, say=say)
    _deliver(found, as_json)


@contextmanager
def _bar() -> Iterator[Callable[[str, float], None]]:
    """A bar on stderr; it leaves nothing behind."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.percentage:>3.0f} %"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal)
    with shown(bar):
        task = bar.add_task("training", total=1.0)
        yield lambda what, share: bar.update(task, description=what, completed=share)


def _deliver(found: Recovered, as_json: bool) -> None:
    from tailwise.report.terminal import console

    screen = console(stderr=as_json)
    if as_json:
        sys.stdout.write(json.dumps(found.to_json(), indent=1) + "\n")
    else:
        screen.print(_table(found))
    for line in _lines(found):
        screen.print(line, markup=False, soft_wrap=True)
    for note in found.notes:
        screen.print(note, style="yellow", markup=False, soft_wrap=True)
    screen.print(f"written to {found.output}", markup=False, soft_wrap=True)


def _table(found: Recovered) -> Table:
    from rich.table import Table

    from tailwise.compression.recovery.recovered import perplexity_words

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    quality = "accuracy ± standard error" if found.after.tasks else "perplexity, 95 %"
    for title in ("", quality, "zeros in the blocks"):
        table.add_column(title, justify="right" if title else "left")
    table.add_row("before", perplexity_words(found.before), f"{found.sparsity[0]:.2%}")
    if found.unmerged is not None:
        table.add_row("adapter, not merged", perplexity_words(found.unmerged), "")
    zeros = f"{found.sparsity[1]:.2%}" if found.method != "lora" else "of the model beside it, as before"
    table.add_row("after", perplexity_words(found.after), zeros)
    return table


def _lines(found: Recovered) -> Iterator[str]:
    change = found.comparison.perplexity
    if change is not None and change.change is not None:
        around = "" if change.interval is None else " [{:+.4f}, {:+.4f}]".format(*change.interval)
        p = "" if change.p is None else f", p = {change.p:.2g}"
        yield f"{change.change:+.4f} nats a token{around}{p}: {change.verdict}, over {change.n} windows"
    for task in found.comparison.tasks:
        around = "" if task.interval is None else " [{:+.4f}, {:+.4f}]".format(*task.interval)
        moved = "–" if task.change is None else f"{task.change:+.4f}"
        yield f"{task.name}: {moved}{around}: {task.verdict}, over {task.n} images"
    if found.cost_of_merging is not None:
        yield f"of that, merging with the zeros put back costs {found.cost_of_merging:+.4f} nats a token"
    training = found.training
    unit = "an image" if found.after.tasks else "a token"
    yield (
        f"best at step {training.best_step} of {training.steps}, by the guard windows: {training.start_loss:.4f} to "
        f"{training.best_loss:.4f} nats {unit} ({training.ended}, {training.seconds:.0f} s)"
    )
